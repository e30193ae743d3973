"""Mask R-CNN on ViT-L/16 with activation checkpointing.

Our choices, based on the authors' recipe for ViT-B; they give none for L.
"""

_base_ = './mask-rcnn_mcbeit-vit-base-p16_fpn_32xb2-amp-lsj-25e_coco-1024x1024.py'

model = dict(
    backbone=dict(
        arch='large',  # maps after blocks 5, 11, 17 and 23, the last of each quarter
        drop_path_rate=0.2,  # our choice: as in fine-tuning ViT-L
        layer_scale_init_value=1e-5,  # a comment in their code
        with_cp=True,
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-large-p16.pth}}'),
    ),
    neck=dict(in_channels=[1024] * 4),
)
