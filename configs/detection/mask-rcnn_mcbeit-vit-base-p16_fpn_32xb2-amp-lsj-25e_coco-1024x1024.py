"""Mask R-CNN on ViT-B/16 from mc-BEiT pretraining: the authors' recipe for 32 GPUs.

Weights: MCBEIT_WEIGHTS or --cfg-options model.backbone.init_cfg.checkpoint=FILE; from scratch:
--cfg-options model.backbone.init_cfg=None
The authors report 49.2 box AP and 44.0 mask AP on val2017; they do not say whether from
pretrained or fine-tuned weights.
"""

_base_ = [
    '../_base_/models/mask-rcnn_mcbeit-vit-base-p16_fpn.py',
    '../_base_/datasets/coco_lsj_bs2_mcbeit.py',
    '../_base_/schedules/mcbeit_adamw_lsj-25e.py',
    '../_base_/detection_runtime.py',
]
