"""mc-BEiT ViT-Ti/16 + a narrow UperNet on 128-px crops, one CPU or small GPU; our choices.

Layout of the data: configs/_base_/datasets/custom_bs4_512x512.py. For a 6-block backbone:
--cfg-options model.backbone.arch.num_layers=6 model.backbone.out_indices=[1,2,3,5]
"""

_base_ = './mcbeit_vit-small-p16_upernet_1xb4-bf16-20k_custom-512x512.py'

max_iters = 2000
size, crop_size = (512, 128), (128, 128)
model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dims=192, num_layers=12, num_heads=3, feedforward_channels=768
        ),
        img_size=128,
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-tiny-p16.pth}}'),
    ),
    neck=dict(embed_dim=192),
    decode_head=dict(in_channels=[192] * 4, channels=64),
    auxiliary_head=dict(in_channels=192, channels=32),
    test_cfg=dict(crop_size=crop_size, stride=(85, 85)),
)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=size)
train_pipeline[3].update(crop_size=crop_size)
test_pipeline[1].update(scale=size)
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4))  # 8e-5 is too slow for new heads in 2,000 steps
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=101)
param_scheduler[1].update(end=max_iters + 1)
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
auto_scale_lr = dict(base_batch_size=8)
