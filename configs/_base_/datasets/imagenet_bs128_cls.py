"""ImageNet-1k with labels, or any folders train/CLASS/*.jpg and val/CLASS/*.jpg in MCBEIT_DATA.

Classes are numbered from 0 in sorted order, unlike in the authors' heads. RandAugment is timm's
rand-m9-mstd0.5-inc1 and erasing timm's pixel mode, except that OpenCV resamples affine transforms
and erased pixels are clipped to 0..255.
"""

train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(  # default of the authors' script, with which timm omits color jitter
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),  # mean color, BGR
    ),
    dict(  # default of the authors' script: prob 0.25, pixel mode, timm's areas
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[103.53, 116.28, 123.675],  # mean and std, BGR
        fill_std=[57.375, 57.12, 58.395],
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='ResizeEdge', scale=256, backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=10,  # authors' README
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='{{$MCBEIT_DATA:data/imagenet}}',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=192,  # 1.5 x train, as in the authors' code
    num_workers=10,
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='{{$MCBEIT_DATA:data/imagenet}}',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader, test_evaluator = val_dataloader, val_evaluator
