"""Adam, 4,000 steps of 16 images (our choice), and the hooks for tokenizer training."""

_base_ = '../default_runtime.py'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-3, betas=(0.9, 0.99)),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [dict(type='WarmupCosineLR', warmup=100, end=4000, by_epoch=False)]
train_cfg = dict(type='ResumableIterLoop', max_iters=4000, val_interval=1000)
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(by_epoch=False, interval=1000, max_keep_ckpts=2)
)
custom_hooks = [
    dict(type='ThroughputHook'),
    dict(type='ReconstructionHook'),
    dict(type='ExportTokenizerHook'),
]
log_processor = dict(
    by_epoch=False,
    mean_pattern=r'(?!val/).*(loss|time|grad_norm|rec|kl|commit|psnr|gan|disc|perceptual|'
    r'usage|perplexity|per_s)',
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
