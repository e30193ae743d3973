"""Mask R-CNN on a ViT-B/16 fine-tuned on ImageNet-1k: the authors' second recipe."""

_base_ = './mask-rcnn_mcbeit-vit-base-p16_fpn_32xb2-amp-lsj-25e_coco-1024x1024.py'

model = dict(
    backbone=dict(
        rel_pos='per_block',  # fine-tuned weights have a table per block; geometric interpolation
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-base-p16_in1k.pth}}'),
    )
)
