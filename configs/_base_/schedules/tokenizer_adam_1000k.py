"""Adam as in taming-transformers, 1,000k steps of 64 images (our choice)."""

_base_ = './tokenizer_adam_4k.py'

optim_wrapper = dict(
    optimizer=dict(lr=4.5e-6 * 64, betas=(0.5, 0.9)),  # 4.5e-6 per image
    clip_grad=None,
)
param_scheduler = []  # constant
train_cfg = dict(max_iters=1_000_000, val_interval=10_000)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(interval=10_000))
auto_scale_lr = dict(base_batch_size=64)
