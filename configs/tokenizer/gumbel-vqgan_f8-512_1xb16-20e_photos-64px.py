"""Train a small tokenizer on your own photos (any folder tree), for 128-px pretraining.

MCBEIT_DATA=/path/to/photos python tools/train.py THIS_FILE --work-dir work_dirs/tok
writes work_dirs/tok/tokenizer, which MCBEIT_TOKENIZER hands to a pretraining config.
"""

_base_ = ['../_base_/models/gumbel-vqgan_f8-512.py', '../_base_/default_runtime.py']

max_iters = 12000

model = dict(warmup_iters=max_iters // 4, total_iters=max_iters)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0), backend='pillow'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    worker_init_fn=dict(type='seed_worker'),
    dataset=dict(
        type='CustomDataset',
        data_root='{{$MCBEIT_DATA:data/photos}}',
        data_prefix='',
        with_label=False,
        pipeline=train_pipeline,
    ),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-3, betas=(0.9, 0.99)),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [dict(type='WarmupCosineLR', warmup=200, end=max_iters, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(by_epoch=False, interval=2000, max_keep_ckpts=2)
)
custom_hooks = [dict(type='ThroughputHook'), dict(type='ExportTokenizerHook')]
log_processor = dict(
    by_epoch=False, mean_pattern=r'.*(loss|time|grad_norm|rec|kl|psnr|usage|perplexity|per_s)'
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
