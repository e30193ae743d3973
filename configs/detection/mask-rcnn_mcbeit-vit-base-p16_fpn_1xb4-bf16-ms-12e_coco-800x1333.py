"""Mask R-CNN on ViT-B/16 for one GPU: short edge 480 to 800, 12 epochs (our choices).

Group norm instead of batch norm: four images with different padding are too few for batch
statistics, and the new layers have no pretrained ones to freeze.
"""

_base_ = [
    '../_base_/models/mask-rcnn_mcbeit-vit-base-p16_fpn.py',
    '../_base_/datasets/coco_ms_bs4_mcbeit.py',
    '../_base_/schedules/mcbeit_adamw_lsj-25e.py',
    '../_base_/detection_runtime.py',
]

norm_cfg = dict(type='GN', num_groups=32)

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)),
)
optim_wrapper = dict(
    type='Bf16OptimWrapper',
    optimizer=dict(lr=2e-5),  # 8e-5 x sqrt(4 / 64), the rule for Adam
)
train_cfg = dict(max_epochs=12)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=12)
auto_scale_lr = dict(base_batch_size=4)
env_cfg = dict(cudnn_benchmark=False)  # sizes vary
