"""Train a small tokenizer on your own photos (any folder tree), for 128-px pretraining.

MCBEIT_DATA=/path/to/photos python tools/train.py THIS_FILE --work-dir work_dirs/tok
writes work_dirs/tok/tokenizer, which MCBEIT_TOKENIZER hands to a pretraining config.
"""

_base_ = [
    '../_base_/models/gumbel-vqgan_f8-512.py',
    '../_base_/datasets/photos_bs16_tokenizer-64px.py',
    '../_base_/default_runtime.py',
]

max_iters = 4000

model = dict(warmup_iters=max_iters // 4, total_iters=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-3, betas=(0.9, 0.99)),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [dict(type='WarmupCosineLR', warmup=100, end=max_iters, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(by_epoch=False, interval=1000, max_keep_ckpts=2)
)
custom_hooks = [dict(type='ThroughputHook'), dict(type='ExportTokenizerHook')]
log_processor = dict(
    by_epoch=False, mean_pattern=r'.*(loss|time|grad_norm|rec|kl|psnr|usage|perplexity|per_s)'
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
