"""ViT-Ti/16 fine-tuned on 128-px images: a few thousand small photos, one CPU or small GPU.

For weights of configs/pretrain/mcbeit_vit-tiny-p16_1xb128-bf16-coslr-100e_photos-128px.py. All
sizes are our choices; mixing, erasing and RandAugment do not pay off in so few epochs.
"""

_base_ = './mcbeit_vit-small-p16_1xb64-bf16-coslr-50e_imagefolder.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=192,
            num_layers=12,
            num_heads=3,
            feedforward_channels=768,
        ),
        img_size=128,
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-tiny-p16_128px.pth}}'),
    ),
    head=dict(in_channels=192),
    train_cfg=None,
)
train_pipeline = _base_.train_pipeline[:3] + _base_.train_pipeline[-1:]  # crop and flip
train_pipeline[1].update(scale=128, crop_ratio_range=(0.2, 1.0))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=128)
test_pipeline[2].update(crop_size=128)
train_dataloader = dict(num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=0.75))
train_cfg = dict(max_epochs=20)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=2, end=20)
