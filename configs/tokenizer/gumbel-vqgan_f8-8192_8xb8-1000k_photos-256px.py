"""The full tokenizer of the paper from your own photos: f8, 8,192 codes, 8 GPUs, fp32.

Upstream trained theirs on OpenImages; batch and length are own choices, the rest says its source.
"""

_base_ = [
    '../_base_/models/vqgan_f8-8192.py',
    '../_base_/datasets/photos_tokenizer-256px.py',
    '../_base_/schedules/tokenizer_adam_1000k.py',
]

model = dict(
    warmup_iters=0,
    total_iters=1_000_000,
    temperature=(0.9, 1e-6),  # model.yaml, as the two below
    temperature_schedule='cosine',  # LambdaWarmUpCosine without a warm-up
    kl_weight=1e-8,
)
train_dataloader = dict(batch_size=8, num_workers=8)
