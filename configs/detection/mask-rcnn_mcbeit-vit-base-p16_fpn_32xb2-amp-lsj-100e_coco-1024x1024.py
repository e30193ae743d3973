"""Mask R-CNN on ViT-B/16, 100 epochs like the MAE runs in the authors' code; same warm-up."""

_base_ = './mask-rcnn_mcbeit-vit-base-p16_fpn_32xb2-amp-lsj-25e_coco-1024x1024.py'

train_cfg = dict(max_epochs=100)  # 184,375 steps
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(end=100)
