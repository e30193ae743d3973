"""Full-size Gumbel VQGAN like the paper's tokenizer: 8,192 codes, 8 GPUs, fp32.

Upstream trained on OpenImages. Batch size and length are our choices; other sources are noted.
"""

_base_ = [
    '../_base_/models/vqgan_f8-8192.py',
    '../_base_/datasets/photos_tokenizer-256px.py',
    '../_base_/schedules/tokenizer_adam_1000k.py',
]

model = dict(
    warmup_iters=0,
    total_iters=1_000_000,
    temperature=(0.9, 1e-6),  # from model.yaml, like the next two
    temperature_schedule='cosine',  # as LambdaWarmUpCosineScheduler without a warm-up
    kl_weight=1e-8,
)
train_dataloader = dict(batch_size=8, num_workers=8)
