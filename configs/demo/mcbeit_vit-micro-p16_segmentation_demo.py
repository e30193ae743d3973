"""The demo's ViT with a narrow UperNet, fine-tuned to segment digits.

MCBEIT_DATA=data/demo/segmentation MCBEIT_WEIGHTS=work_dirs/demo/pretrain
python tools/train.py configs/demo/mcbeit_vit-micro-p16_segmentation_demo.py; from scratch:
--cfg-options model.backbone.init_cfg=None. No layer decay: one learning rate for both starts.
"""

_base_ = '../segmentation/mcbeit_vit-tiny-p16_upernet_1xb8-bf16-2k_custom-128x128.py'

max_iters = 450

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=128,
            num_layers=6,
            num_heads=4,
            feedforward_channels=512,
        ),
        layer_scale_init_value=1.0,  # as in the demo's pretraining
        drop_path_rate=0.0,
        abs_pos=True,
        out_indices=[1, 2, 3, 5],
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:work_dirs/demo/pretrain}}'),
    ),
    neck=dict(embed_dim=128),
    decode_head=dict(
        in_channels=[128] * 4,
        channels=32,
        loss_decode=dict(class_weight=[0.2] + [1.0] * 10),  # 5 of 6 pixels are background
    ),
    auxiliary_head=None,
    test_cfg=dict(_delete_=True, mode='whole'),
)
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(1.0, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),  # no flip: digits
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=20, num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [dict(type='WarmupCosineLR', warmup=40, end=max_iters, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=max_iters, max_keep_ckpts=1, save_best=None),
)
