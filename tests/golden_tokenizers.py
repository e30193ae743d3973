"""Helpers for tokenizer tests: golden VQGANs as release folders."""

from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import GOLDEN

TARGETS = {'gumbel': 'GumbelVQ', 'ema': 'EMAVQ'}


def sizes_of(golden):
    return {key: golden.sizes[key] for key in ('ddconfig', 'n_embed', 'embed_dim')}


def images_of(golden):
    return golden['image_uint8'].permute(0, 3, 1, 2) / 255


def golden_state(kind):
    arrays = {}
    for side in ('encoder', 'decoder'):
        arrays |= np.load(GOLDEN / f'tokenizer_{kind}_state_{side}.npz')
    return {name.removeprefix('state/'): torch.from_numpy(a) for name, a in arrays.items()}


def save_state(folder, state):
    torch.save({'state_dict': state}, folder / 'last.ckpt')


def write_golden(folder, golden, kind):
    """Write a golden VQGAN as a release folder with a Lightning checkpoint."""
    folder.mkdir()
    params = sizes_of(golden) | dict(kl_weight=1e-8, lossconfig=dict(target='x.DummyLoss'))
    content = dict(model=dict(target=f'taming.models.vqgan.{TARGETS[kind]}', params=params))
    (folder / 'model.yaml').write_text(yaml.safe_dump(content))
    state = golden_state(kind) | {'loss.discriminator.main.0.weight': torch.zeros(3)}
    checkpoint = {'epoch': 3, 'state_dict': state, 'callbacks': {Path: Path('x')}}
    torch.save(checkpoint, folder / 'last.ckpt')
    return folder
