"""Small Gumbel VQGAN with 1,024 codes for 224-px pretraining (14 x 14 patches)."""

_base_ = [
    '../_base_/models/vqgan_f8-512.py',
    '../_base_/datasets/photos_tokenizer-112px.py',
    '../_base_/schedules/tokenizer_adam_4k.py',
]

model = dict(ddconfig=dict(resolution=112), n_embed=1024, warmup_iters=500, total_iters=2000)
param_scheduler = [dict(type='WarmupCosineLR', warmup=100, end=2000, by_epoch=False)]
train_cfg = dict(max_iters=2000)
