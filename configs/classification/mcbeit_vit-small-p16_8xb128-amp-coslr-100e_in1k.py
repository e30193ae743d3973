"""ViT-S/16 fine-tuned on ImageNet-1k with the authors' recipe for ViT-B (they give none for S)."""

_base_ = './mcbeit_vit-base-p16_8xb128-amp-coslr-100e_in1k.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-small-p16.pth}}'),
    ),
    head=dict(in_channels=384),
)
