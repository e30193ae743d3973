"""ADE20K, 640-px crops (BEiT's 640 configs)."""

_base_ = './ade20k_bs2_512x512.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(2560, 640))
train_pipeline[3].update(crop_size=(640, 640))
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(2560, 640))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
