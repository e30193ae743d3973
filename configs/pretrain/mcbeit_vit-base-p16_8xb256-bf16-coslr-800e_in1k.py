"""mc-BEiT ViT-B/16 on 8 GPUs in bfloat16 (Ampere and later): no loss scaler."""

_base_ = './mcbeit_vit-base-p16_8xb256-amp-coslr-800e_in1k.py'

optim_wrapper = dict(type='Bf16OptimWrapper')
