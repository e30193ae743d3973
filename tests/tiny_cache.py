"""What the tests of cached targets share: photos, a tiny pretraining config, its cache."""

import numpy as np
import torch
from conftest import TINY_VQGAN
from mmengine.config import Config
from PIL import Image

from mcbeit_mm.cached_targets.building import CacheBuilder
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
NUM_IMAGES = 6


def write_photos(root):
    """Photos of several sizes below root/train; the third one is cut short."""
    rng = np.random.default_rng(0)
    (root / 'train').mkdir(parents=True)
    for number in range(NUM_IMAGES):
        size = 40 + 3 * number, 60 - 2 * number
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        file = root / 'train' / f'{number}.jpg'
        Image.fromarray(pixels).save(file, quality=90)
        if number == 2:
            file.write_bytes(file.read_bytes()[:-400])
    return root


def tiny_config(root, **head):
    """A pretraining config on the photos, with 4 x 4 patches and 16 codes."""
    tokenizer = root / 'tokenizer.pt'
    if not tokenizer.exists():
        torch.manual_seed(1)
        torch.save(GumbelVQGANTokenizer(**TINY_VQGAN).state_dict(), tokenizer)
    model = dict(
        type='MCBEiT',
        data_preprocessor=dict(
            type='TwoViewDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            second_mean=[0.0] * 3,
            second_std=[255.0] * 3,
            to_rgb=True,
        ),
        backbone=dict(type='MCBEiTViT', arch=ARCH, img_size=32, patch_size=8),
        head=dict(type='MCBEiTHead', embed_dims=32, vocab_size=None, **head),
        target_generator=dict(type='GumbelVQGANTokenizer', checkpoint=str(tokenizer), **TINY_VQGAN),
    )
    pipeline = [
        dict(type='LoadCheckedImage'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='TwoViewRandomResizedCrop', size=32, second_size=8),
        dict(type='RandomPatchMask', grid_size=4),
        dict(type='PackInputs'),
    ]
    dataset = dict(
        type='CustomDataset',
        data_root=str(root),
        data_prefix='train',
        with_label=False,
        pipeline=pipeline,
        _scope_='mmpretrain',
    )
    return Config(dict(model=model, train_dataloader=dict(dataset=dataset)))


def cached_config(cfg, cache):
    """The same config, trained from a cache."""
    cfg = Config(cfg.to_dict())
    cfg.model.target_generator = dict(type='CachedTokenizer', checkpoint=str(cache))
    load, _, _, mask, pack = cfg.train_dataloader.dataset.pipeline
    crop = dict(type='CachedTargetsCrop', cache=str(cache))
    cfg.train_dataloader.dataset.pipeline = [load, crop, mask, pack]
    return cfg


def make_cache(cfg, out, k=None, num_crops=3, dtype='float32', **kwargs):
    builder = CacheBuilder(cfg, k, num_crops, dtype, **kwargs)
    builder.build(out, batch_size=2, report=lambda _: None)
    return builder
