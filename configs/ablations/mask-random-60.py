"""Random masks of 60 % of the patches instead of 75 %."""

_base_ = './baseline.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(mask_ratio=0.6)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
