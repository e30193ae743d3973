"""The demo's ViT fine-tuned to classify the digit of an image, pretrained or from scratch.

MCBEIT_DATA=data/demo/classification MCBEIT_WEIGHTS=work_dirs/demo/pretrain
python tools/train.py configs/demo/mcbeit_vit-micro-p16_classification_demo.py; from scratch:
--cfg-options model.backbone.init_cfg=None. No layer decay: one learning rate for both starts.
"""

_base_ = '../classification/mcbeit_vit-tiny-p16_1xb64-bf16-coslr-20e_imagefolder-128px.py'

max_epochs = 6

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=128,
            num_layers=6,
            num_heads=4,
            feedforward_channels=512,
        ),
        layer_scale_init_value=1.0,  # as in the demo's pretraining
        abs_pos=True,
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:work_dirs/demo/pretrain}}'),
    ),
    head=dict(in_channels=128),
)
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.5, 1.0)),  # no flip: digits
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=50, num_workers=0)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='SingleLabelMetric', items=['recall'], average=None),  # accuracy of each class
    dict(type='ConfusionMatrix'),
]
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(layer_decay_rate=1.0))
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=1, end=max_epochs)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1, save_best=None),
)
auto_scale_lr = dict(base_batch_size=16)
