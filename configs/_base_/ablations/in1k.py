"""Base of the ablations on ImageNet-1k: ViT-B/16, 300 epochs, otherwise the authors' recipe."""

_base_ = '../../pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-300e_in1k.py'
