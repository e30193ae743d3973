"""mc-BEiT on the demo data with two CPU cores: a 6-block ViT on 128-px images (8 x 8 patches).

Run by tools/demo.py, after the tokenizer. tau and omega are the authors'; absolute positions, layer
scale 1 and 60 % masking are our choices, which learn faster in 560 steps.
"""

_base_ = '../pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'

max_epochs = 18
grid = 8
data_root = '{{$MCBEIT_DATA:data/demo/classification}}'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=128,
            num_layers=6,
            num_heads=4,
            feedforward_channels=512,
        ),
        img_size=128,
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
        abs_pos=True,
    ),
    head=dict(embed_dims=128, vocab_size=256),
    target_generator=dict(checkpoint='{{$MCBEIT_TOKENIZER:work_dirs/demo/tokenizer/tokenizer}}'),
)
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='TwoViewRandomResizedCrop', size=128, second_size=64, scale=(0.5, 1.0)),
    dict(type='RandomPatchMask', grid_size=grid, mask_ratio=0.6),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=4, end=max_epochs)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=max_epochs, max_keep_ckpts=1)
)
custom_hooks = [
    dict(type='TokenizerIdentityHook'),
    dict(type='ThroughputHook'),
    dict(type='KNNHook', data=data_root, interval=9, layer=3, num_workers=0),
]
auto_scale_lr = dict(base_batch_size=64)
