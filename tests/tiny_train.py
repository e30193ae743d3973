"""A pretraining run that takes seconds."""

from pathlib import Path

import numpy as np
import torch
from conftest import ROOT
from PIL import Image
from tiny_models import DDCONFIG

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

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
env_cfg = dict(mp_cfg=dict(_delete_=True))  # keeps the start method of processes
"""


def write_tiny_run(folder: Path) -> Path:
    """Write tiny.py, 32 tiny images of two kinds and the weights of two random tokenizers."""
    (folder / 'photos/nested').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(32):
        image = np.full((80, 96, 3), 40 if i % 2 else 200, dtype=np.uint8)
        image += rng.integers(0, 30, image.shape, dtype=np.uint8)
        Image.fromarray(image).save(folder / f'photos/nested/{i:02d}.png')
    for name, seed in (('tokenizer', 0), ('other', 1)):
        torch.manual_seed(seed)
        tokenizer = GumbelVQGANTokenizer(DDCONFIG, 24, 8)
        torch.save(dict(state_dict=tokenizer.state_dict()), folder / f'{name}.pth')
    text = CONFIG.format(root=ROOT, folder=folder, ddconfig=DDCONFIG)
    (folder / 'tiny.py').write_text(text)
    return folder
