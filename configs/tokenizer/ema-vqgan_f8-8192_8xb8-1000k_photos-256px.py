"""Full-size EMA VQGAN with the decay and beta of EMAVQ in taming-transformers."""

_base_ = [
    '../_base_/models/vqgan_f8-8192.py',
    '../_base_/datasets/photos_tokenizer-256px.py',
    '../_base_/schedules/tokenizer_adam_1000k.py',
]

model = dict(
    type='EMAVQGANTrainer',
    warmup_iters=0,
    total_iters=1_000_000,
    decay=0.99,
    beta=0.25,
    restart_interval=1000,  # our choice, since the initial codes are random
)
train_dataloader = dict(batch_size=8, num_workers=8)
