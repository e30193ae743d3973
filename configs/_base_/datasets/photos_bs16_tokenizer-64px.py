"""64-px crops of an unlabelled photo folder, drawn for ever: what a small tokenizer trains on."""

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0), backend='pillow'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    worker_init_fn=dict(type='seed_worker'),
    dataset=dict(
        type='CustomDataset',
        data_root='{{$MCBEIT_DATA:data/photos}}',
        data_prefix='',
        with_label=False,
        pipeline=train_pipeline,
    ),
)
