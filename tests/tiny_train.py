"""A pretraining config for seconds."""

CONFIG = """
_base_ = '{root}/configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
        img_size=64,
        drop_path_rate=0.0,
    ),
    head=dict(embed_dims=32, vocab_size=24, tau=0.5),
    target_generator=dict(
        ddconfig={ddconfig}, n_embed=24, embed_dim=8, checkpoint='{folder}/tokenizer.pth'
    ),
)
pipeline = _base_.train_pipeline
pipeline[2].update(size=64, second_size=32)
pipeline[3].update(grid_size=4)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root='{folder}/photos', data_prefix='', pipeline=pipeline),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-2))
train_cfg = dict(max_epochs=4)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=1, end=4)
default_hooks = dict(logger=dict(interval=1))
"""
