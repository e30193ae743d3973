"""Shared fixtures: golden arrays of the authors' code, tiny models."""

import gc
import json
import os
from pathlib import Path

# Threads only slow down tiny tensors, and xdist runs several processes.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

GOLDEN = Path(__file__).parent / 'golden'
ROOT = Path(__file__).parent.parent
# Sizes of a Gumbel or EMA VQGAN: 16 codes, two pixels per token.
TINY_VQGAN = dict(
    ddconfig=dict(
        z_channels=8,
        resolution=16,
        ch=8,
        ch_mult=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[],
        num_groups=2,
    ),
    n_embed=16,
    embed_dim=4,
)


def pytest_collection_finish() -> None:
    """Exclude the imported libraries from garbage collection.

    MMEngine's data sets call gc.collect(), which otherwise traverses them for a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _no_default_scope():
    """Reset the default scope that a Runner sets; other tests build models without one."""
    yield
    DefaultScope._instance_dict.clear()


class Golden:
    """A golden file: tensors by name, and the sizes of the model that produced them."""

    def __init__(self, name: str):
        self.sizes = json.loads((GOLDEN / 'config.json').read_text())['files'][f'{name}.npz']
        self.arrays = dict(np.load(GOLDEN / f'{name}.npz'))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) + 1 :]: self[k] for k in self.arrays if k.startswith(f'{prefix}/')}


@pytest.fixture
def golden():
    """golden('pretrain') loads tests/golden/pretrain.npz."""
    return Golden


@pytest.fixture
def golden_json():
    """golden_json('optim') reads tests/golden/optim.json."""
    return lambda name: json.loads((GOLDEN / f'{name}.json').read_text())


def backbone_from(sizes: dict, **kwargs):
    """Build an MCBEiTViT with the sizes of a golden file."""
    from mcbeit_mm.backbone import MCBEiTViT

    dims = sizes['embed_dim']
    arch = dict(
        embed_dims=dims,
        num_layers=sizes['depth'],
        num_heads=sizes['num_heads'],
        feedforward_channels=4 * dims,
    )
    settings = dict(
        img_size=tuple(sizes['img_size']),
        patch_size=sizes['patch_size'],
        layer_scale_init_value=sizes['init_values'],
    )
    return MCBEiTViT(arch, **(settings | kwargs))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest absolute difference over the largest expected magnitude."""
    return float((got - expected).abs().max() / expected.abs().max())
