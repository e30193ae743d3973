"""mc-BEiT ViT-L/16 on 8 GPUs with AdamW's moments sharded (ZeRO stage 1).

Computed from 311.5 M fp32 values: moments take 0.29 GiB per GPU instead of 2.32; weights (1.16) and
gradients (1.16) stay whole.
"""

_base_ = './mcbeit_vit-large-p16_16xb128-amp-coslr-800e_in1k.py'

train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(type='ShardedOptimizer', optimizer_type='AdamW'))
