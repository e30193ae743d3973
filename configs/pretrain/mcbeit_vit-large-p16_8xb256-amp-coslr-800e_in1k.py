"""mc-BEiT ViT-L/16 on one node of 8 GPUs, the same total batch of 2048."""

_base_ = './mcbeit_vit-large-p16_16xb128-amp-coslr-800e_in1k.py'

train_dataloader = dict(batch_size=256)
