"""The authors' ADE20K schedule for 16 images per step, fp16.

Warm-up and decay are multiplied over the same iterations, as in mmcv 1.x, which the authors used:
lr(i) = 8e-5 (1 - i / 160000), times i / 1500 while i < 1500.
"""

max_iters = 160000

optim_wrapper = dict(
    type='AmpOptimWrapper',  # apex O1 in the authors' code
    optimizer=dict(type='AdamW', lr=8e-5, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=None,
    constructor='ViTLayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),  # does not decay cls_token; theirs does, by accident
)
param_scheduler = [
    # MMEngine's schedules reach their final value one iteration before `end`.
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1501, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(type='ResumableIterLoop', max_iters=max_iters, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
