"""COCO 2017 instances with a short edge of 480 to 800 pixels, mmdet's usual scales."""

_base_ = './coco_lsj_bs2_mcbeit.py'

train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, short) for short in range(480, 801, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(1333, 800))
train_dataloader = dict(
    batch_size=4,
    batch_sampler=dict(type='AspectRatioBatchSampler'),  # less padding
    drop_last=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
