"""mc-BEiT ViT-S/16 with the recipe of ViT-B (our choice: the authors give none for S)."""

_base_ = './mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'

model = dict(backbone=dict(arch='small'), head=dict(embed_dims=384))
