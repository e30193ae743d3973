"""mc-BEiT ViT-S/16, 300 epochs (our choice)."""

_base_ = './mcbeit_vit-small-p16_16xb128-amp-coslr-800e_in1k.py'

train_cfg = dict(max_epochs=300)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=300)
