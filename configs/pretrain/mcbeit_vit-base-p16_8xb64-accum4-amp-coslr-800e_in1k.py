"""mc-BEiT ViT-B/16 on 8 small GPUs: 8 x 64 x 4 accumulated = 2048."""

_base_ = './mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=4)
