"""ImageNet-1k train images without labels: two views of one crop and a random 75 % mask.

Data: MCBEIT_DATA or --cfg-options train_dataloader.dataset.data_root=FOLDER, with the images in
FOLDER/train.
"""

train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='TwoViewRandomResizedCrop',
        size=224,
        second_size=112,  # 14 x 14 patches x the tokenizer's stride of 8
        scale=(0.08, 1.0),
    ),
    dict(type='RandomPatchMask', grid_size=14, mask_ratio=0.75),  # authors' README: 147 of 196
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
        with_label=False,
        pipeline=train_pipeline,
    ),
)
