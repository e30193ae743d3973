"""What every pretraining run shares: imports, hooks, logging, seed."""

custom_imports = dict(imports=['mcbeit_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),  # as the authors
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    dict(type='FitWeightsHook'),  # load_from: takes the authors' files too
    dict(type='TokenizerIdentityHook'),
    dict(type='ThroughputHook'),
]
# cudnn_benchmark as the authors: input sizes never change in pretraining.
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
# Training values but the learning rate are averaged over the window.
log_processor = dict(
    window_size=10, mean_pattern=r'.*(loss|time|grad_norm|kl|entropy|mlm_acc|images_per_s|share)'
)
log_level = 'INFO'
load_from = None
resume = False
# Each rank draws its own crops and masks; DistributedDataParallel sends rank 0's weights to all.
randomness = dict(seed=0, diff_rank_seed=True)
