"""mc-BEiT ViT-Ti/16 on 128-px images: a few thousand small photos, one CPU or small GPU.

First train a tokenizer on the same photos (configs/tokenizer). All sizes are our choices; tau,
omega and the mask ratio are the authors'.
"""

_base_ = './mcbeit_vit-small-p16_1xb256-bf16-coslr-300e_photos.py'

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
    ),
    head=dict(embed_dims=192, vocab_size=None),  # the tokenizer's
)
train_pipeline = [
    # Three times the pixels that crops of 128 pixels need: 0.2 of the area, aspect ratio 3/4.
    dict(type='LoadCheckedImage', enough_pixels=round(3 * 128**2 / (0.2 * 3 / 4))),
    dict(type='RandomFlip', prob=0.5),
    dict(type='TwoViewRandomResizedCrop', size=128, second_size=64, scale=(0.2, 1.0)),
    dict(type='RandomPatchMask', grid_size=8, mask_ratio=0.75),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, num_workers=2, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=100)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=100, eta_min_ratio=0.01)
auto_scale_lr = dict(base_batch_size=128)
