"""A tiny MCBEiT and its parts."""

import torch
from mmpretrain.structures import DataSample

from mcbeit_mm.mcbeit import MCBEiT

DDCONFIG = dict(
    double_z=False, z_channels=8, resolution=32, in_channels=3, out_ch=3, ch=32,
    ch_mult=[1, 1, 2, 2], num_res_blocks=1, attn_resolutions=[], dropout=0.0,
)  # fmt: skip
TOKENIZER = dict(type='GumbelVQGANTokenizer', ddconfig=DDCONFIG, n_embed=24, embed_dim=8)
ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
NORM = dict(
    type='TwoNormDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    second_mean=[0.0] * 3, second_std=[255.0] * 3, to_rgb=True,
)  # fmt: skip


def tiny(**kwargs) -> MCBEiT:
    settings = dict(
        backbone=dict(type='MCBEiTViT', arch=ARCH, img_size=64),
        head=dict(type='MCBEiTHead', embed_dims=32, vocab_size=24),
        target_generator=dict(TOKENIZER),
        data_preprocessor=dict(NORM),
    )
    return MCBEiT(**(settings | kwargs))


def batch(size=2):
    samples = [DataSample().set_mask(torch.rand(4, 4) < 0.6) for _ in range(size)]
    return [torch.randn(size, 3, 64, 64), torch.rand(size, 3, 32, 32)], samples
