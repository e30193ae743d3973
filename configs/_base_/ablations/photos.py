"""Base of the ablations on a small photo folder: 4 blocks of 192 dims, 96-px views, 10 epochs.

A run over 10,000 photos takes about 8 minutes on one CPU core. All sizes are our choices; absolute
positions and layer scale 1 speed up learning. Train a tokenizer of configs/tokenizer on the photos.
"""

_base_ = '../../pretrain/mcbeit_vit-tiny-p16_1xb128-bf16-coslr-100e_photos-128px.py'

model = dict(
    backbone=dict(arch=dict(num_layers=4), img_size=96, layer_scale_init_value=1.0, abs_pos=True)
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(size=96, second_size=48)
train_pipeline[3].update(grid_size=6)
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=10)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=2, end=10)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1))
