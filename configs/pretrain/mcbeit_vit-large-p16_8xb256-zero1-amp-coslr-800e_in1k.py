"""mc-BEiT ViT-L/16 on 8 GPUs with AdamW's moments divided among them (ZeRO stage 1).

Computed from 311.5 M fp32 values: 2.32 GiB of moments per GPU become 0.29; weights (1.16) and
gradients (1.16) stay whole.
"""

_base_ = './mcbeit_vit-large-p16_8xb256-amp-coslr-800e_in1k.py'

optim_wrapper = dict(optimizer=dict(type='ShardedOptimizer', optimizer_type='AdamW'))
