"""ViT-B/16 at 384 px, from a classifier fine-tuned at 224 px (MCBEIT_WEIGHTS).

Settings of BEiT's command for fine-tuned weights, with its README's --input_size 384 and without
mixing. The head is loaded too; position tables are resized (geometrically, as in BEiT).
"""

_base_ = './mcbeit_vit-base-p16_8xb128-amp-coslr-100e_in1k.py'

load_from = '{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-base-p16_in1k.pth}}'
model = dict(backbone=dict(img_size=384, init_cfg=None), train_cfg=None)
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=384)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=384)  # from 384 px on BEiT crops no border
test_pipeline[2].update(crop_size=384)
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=96, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    optimizer=dict(lr=2e-5, weight_decay=1e-8),
    paramwise_cfg=dict(layer_decay_rate=0.85),
)
train_cfg = dict(max_epochs=30)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=5, end=30, eta_min_ratio=1e-6 / 2e-5)
auto_scale_lr = dict(base_batch_size=512)
