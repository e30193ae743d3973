"""Runtime of pretraining: the transfer runtime plus the tokenizer's hook and log values."""

_base_ = './transfer_runtime.py'

default_scope = 'mmpretrain'
default_hooks = dict(
    logger=dict(interval=100),  # as in the authors' code
    checkpoint=dict(max_keep_ckpts=3),
)
custom_hooks = [*_base_.custom_hooks, dict(type='TokenizerIdentityHook')]
# Training values except the learning rate are averaged over the window.
log_processor = dict(
    mean_pattern=r'.*(loss|time|grad_norm|kl|entropy|mlm_acc|images_per_s|share)',
)
