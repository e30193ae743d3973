"""Unlabeled photos in any folder tree, sampled endlessly as 64-px crops.

Every twentieth photo, chosen by its name, is held out for validation. Data: MCBEIT_DATA=FOLDER
"""

train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0), backend='pillow'),
    dict(type='PackInputs'),
]
val_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='ResizeEdge', scale=64, backend='pillow', interpolation='lanczos'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
dataset = dict(type='PhotoFolder', data_root='{{$MCBEIT_DATA:data/photos}}', data_prefix='')
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(split='train', pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(split='val', pipeline=val_pipeline, **dataset),
)
val_evaluator = dict(type='ReconstructionMetric')
val_cfg = dict()
