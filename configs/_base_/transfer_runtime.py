"""Runtime of transfer: imports, hooks, logging, seed. Each task sets its own default_scope."""

_base_ = './reliable_runtime.py'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='FitWeightsHook'),  # load_from: resizes position tables, refuses unrelated weights
    dict(type='ThroughputHook'),
]
env_cfg = dict(
    cudnn_benchmark=True,  # as in the authors' code
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
# Training values except the learning rate are averaged over the window; evaluations are not.
log_processor = dict(
    window_size=10, mean_pattern=r'.*(loss|time|grad_norm|acc$|acc_seg|images_per_s)'
)
log_level = 'INFO'
load_from = None
resume = False
# Each rank draws its own crops and mixes; DistributedDataParallel broadcasts rank 0's weights.
randomness = dict(seed=0, diff_rank_seed=True)
