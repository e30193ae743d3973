"""mc-BEiT ViT-S/16 + UperNet on your own photos and masks, with one GPU; sizes are our choices.

MCBEIT_WEIGHTS=pretrained.pth MCBEIT_DATA=/path/to/data python tools/train.py
configs/segmentation/mcbeit_vit-small-p16_upernet_1xb4-bf16-20k_custom-512x512.py
Layout of the data: configs/_base_/datasets/custom_bs4_512x512.py
"""

_base_ = [
    '../_base_/models/upernet_mcbeit_vit-base-p16.py',
    '../_base_/datasets/custom_bs4_512x512.py',
    '../_base_/schedules/upernet_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]

max_iters = 20000
norm_cfg = dict(type='BN', requires_grad=True)
head = dict(num_classes=_base_.num_classes, norm_cfg=norm_cfg)

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-small-p16.pth}}'),
    ),
    neck=dict(embed_dim=384, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[384] * 4, channels=384, **head),
    auxiliary_head=dict(in_channels=384, channels=128, **head),
)
optim_wrapper = dict(type='Bf16OptimWrapper')
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=501)
param_scheduler[1].update(end=max_iters + 1)
train_cfg = dict(max_iters=max_iters, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000))
auto_scale_lr = dict(base_batch_size=4)
