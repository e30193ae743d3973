"""Mask R-CNN on ViT-Ti/16 for your own photos and objects, one small GPU; our choices.

MCBEIT_WEIGHTS=pretrained.pth MCBEIT_DATA=/path/to/data python tools/train.py
configs/detection/mask-rcnn_mcbeit-vit-tiny-p16_fpn_1xb4-bf16-lsj-30e_custom-320px.py
Layout of the data: configs/_base_/datasets/custom_lsj_bs4_mcbeit-320px.py
For a backbone of 6 blocks: --cfg-options model.backbone.arch.num_layers=6
model.backbone.global_blocks="(0,2,3,5)"
"""

_base_ = [
    '../_base_/models/mask-rcnn_mcbeit-vit-tiny-p16_fpn.py',
    '../_base_/datasets/custom_lsj_bs4_mcbeit-320px.py',
    '../_base_/schedules/mcbeit_adamw_lsj-25e.py',
    '../_base_/detection_runtime.py',
]

head = dict(num_classes=_base_.num_classes)
model = dict(roi_head=dict(bbox_head=head, mask_head=head))
optim_wrapper = dict(type='Bf16OptimWrapper', optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=30, val_interval=10)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=1)
param_scheduler[1].update(end=30)
auto_scale_lr = dict(base_batch_size=4)
