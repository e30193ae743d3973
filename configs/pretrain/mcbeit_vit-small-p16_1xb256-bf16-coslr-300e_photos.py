"""mc-BEiT ViT-S/16 on your own unlabeled photos, any folder tree of images, with one GPU.

MCBEIT_DATA=/path/to/photos python tools/train.py
configs/pretrain/mcbeit_vit-small-p16_1xb256-bf16-coslr-300e_photos.py
"""

_base_ = './mcbeit_vit-small-p16_16xb128-amp-coslr-800e_in1k.py'

model = dict(head=dict(vocab_size=None))  # that of the tokenizer

# Crops cover at least 0.08 of the area with an aspect ratio of 3/4 to 4/3. A third of these pixels
# is enough for crops of 224 pixels; with three times as many, the effect of decoding at a lower
# resolution is hard to see (docs/data.md).
train_pipeline = _base_.train_pipeline
train_pipeline[0].update(enough_pixels=round(3 * 224**2 / (0.08 * 3 / 4)))
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    dataset=dict(data_root='{{$MCBEIT_DATA:data/photos}}', data_prefix='', pipeline=train_pipeline),
)
optim_wrapper = dict(
    type='Bf16OptimWrapper',
    optimizer=dict(lr=1.5e-3 * 256 / 2048),  # the linear rule from the authors' batch
)
train_cfg = dict(max_epochs=300)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=300)
auto_scale_lr = dict(base_batch_size=256)
