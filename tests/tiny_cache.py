"""Photos, a tiny pretraining config and its cache, for the tests of cached targets."""

import numpy as np
import torch
from conftest import TINY_VQGAN
from mmengine.config import Config
from PIL import Image

from mcbeit_mm.cached_targets.building import CacheBuilder
from mcbeit_mm.cached_targets.cache import Header
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
NUM_IMAGES = 6
UNREADABLE_IMAGE = 2


def photo_size(number):
    """Height and width of a photo."""
    return 40 + 3 * number, 60 - 2 * number


def write_photos(root):
    """Photos of several sizes below root/train, one of them truncated."""
    rng = np.random.default_rng(0)
    (root / 'train').mkdir(parents=True)
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (*photo_size(number), 3), np.uint8)
        file = root / 'train' / f'{number}.jpg'
        Image.fromarray(pixels).save(file, quality=90)
        if number == UNREADABLE_IMAGE:
            file.write_bytes(file.read_bytes()[:-400])
    return root


def write_header(folder, **changes):
    """Write the header of a cache without images: 24 codes, k=5, 4 x 4 tokens of 8 pixels."""
    settings = dict(
        vocab_size=24, stride=8, grid=(4, 4), k=5, tau=4.0, num_images=0, num_crops=1, seed=0
    )
    crop, tokenizer = dict(size=64, second_size=32), dict(type='GumbelVQGANTokenizer')
    header = Header(**settings | dict(crop=crop, tokenizer=tokenizer) | changes)
    header.write(folder)
    return header


def tiny_config(root, **head):
    """A pretraining config on the photos, with 4 x 4 patches and 16 codes."""
    tokenizer = root / 'tokenizer.pt'
    if not tokenizer.exists():
        torch.manual_seed(1)
        state = GumbelVQGANTokenizer(**TINY_VQGAN).state_dict()
        state['quantize.proj.weight'] *= 50  # as confident as a trained one
        torch.save(state, tokenizer)
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


def make_cache(cfg, out, k=None, num_crops=3):
    """Build a cache; return its builder."""
    builder = CacheBuilder(cfg, k, num_crops)
    builder.build(out, batch_size=2)
    return builder
