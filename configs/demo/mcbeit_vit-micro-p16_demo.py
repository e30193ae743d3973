"""mc-BEiT on the embedded data for two CPU cores: a 6-block ViT on 128-px images (8 x 8 patches).

tools/demo.py runs it after training the tokenizer. Sizes are chosen for minutes on a CPU; tau,
omega and the mask ratio are the authors'.
"""

_base_ = '../pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'

max_epochs = 40
grid = 8
data_root = '{{$MCBEIT_DATA:data/demo/classification}}'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=192,
            num_layers=6,
            num_heads=3,
            feedforward_channels=768,
        ),
        img_size=128,
        drop_path_rate=0.0,
    ),
    head=dict(embed_dims=192, vocab_size=256),
    target_generator=dict(checkpoint='{{$MCBEIT_TOKENIZER:work_dirs/demo/tokenizer/tokenizer}}'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TwoViewRandomResizedCrop', size=128, second_size=64, scale=(0.5, 1.0)),
    dict(type='RandomPatchMask', grid_size=grid, mask_ratio=0.75),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1.5e-3))
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=4, end=max_epochs)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=max_epochs, max_keep_ckpts=1)
)
custom_hooks = [
    dict(type='TokenizerIdentityHook'),
    dict(type='ThroughputHook'),
    dict(type='KNNHook', data=data_root, interval=10, layer=3, num_workers=0),
]
