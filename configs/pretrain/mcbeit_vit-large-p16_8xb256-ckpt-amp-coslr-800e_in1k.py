"""mc-BEiT ViT-L/16 on 8 GPUs with activation checkpointing."""

_base_ = './mcbeit_vit-large-p16_8xb256-amp-coslr-800e_in1k.py'

model = dict(backbone=dict(with_cp=True))
