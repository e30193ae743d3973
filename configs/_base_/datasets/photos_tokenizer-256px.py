"""photos_tokenizer-64px at 256 px, the size used by taming-transformers."""

_base_ = './photos_tokenizer-64px.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=256)
val_pipeline = _base_.val_pipeline
val_pipeline[1].update(scale=256)
val_pipeline[2].update(crop_size=256)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
