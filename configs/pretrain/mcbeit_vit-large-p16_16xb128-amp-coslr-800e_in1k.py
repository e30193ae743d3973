"""mc-BEiT ViT-L/16. The authors report 85.6 top-1 after fine-tuning, but give no command for L.

Layer scale 1e-5 is what their script recommends for L; learning rate, clipping and drop path come
from ConMIM-L, by the same lab and with the same batch of 2048.
"""

_base_ = './mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'

model = dict(
    backbone=dict(arch='large', layer_scale_init_value=1e-5, drop_path_rate=0.0),
    head=dict(embed_dims=1024),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(eta_min_ratio=1e-5 / 7.5e-4)
