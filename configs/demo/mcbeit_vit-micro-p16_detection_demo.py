"""The demo's ViT with a small Mask R-CNN, fine-tuned to detect digits.

MCBEIT_DATA=data/demo/detection MCBEIT_WEIGHTS=work_dirs/demo/pretrain
python tools/train.py configs/demo/mcbeit_vit-micro-p16_detection_demo.py; from scratch:
--cfg-options model.backbone.init_cfg=None. No layer decay, as in the authors' recipe.
"""

_base_ = '../detection/mask-rcnn_mcbeit-vit-tiny-p16_fpn_1xb4-bf16-lsj-30e_custom-320px.py'

max_epochs = 1

model = dict(
    data_preprocessor=dict(pad_size_divisor=128),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=128,
            num_layers=6,
            num_heads=4,
            feedforward_channels=512,
        ),
        img_size=128,
        window_size=8,  # the whole image: the pretrained table fits unchanged
        global_blocks=(0, 2, 3, 5),
        layer_scale_init_value=1.0,  # as in the demo's pretraining
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:work_dirs/demo/pretrain}}'),
    ),
    neck=dict(in_channels=[128] * 4),
    # Few proposals and samples: one to three digits per image, two CPU cores.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=50),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
)
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),  # no flip: digits
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(128, 128))
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=10, num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(classwise=True)
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=0.1,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1, save_best=None),
)
auto_scale_lr = dict(base_batch_size=8)
