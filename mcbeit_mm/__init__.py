"""mcbeit_mm: mc-BEiT pretraining and transfer on OpenMMLab.

Importing the package registers every component in MMEngine's root registries and serves mmcv's
missing ops.
"""

__version__ = '0.1.0'

from . import mmcv_ops

mmcv_ops.install()  # before anything imports mmcv.ops

from . import (  # noqa: E402
    backbone,
    datasets,
    detection,
    head,
    hooks,
    images,
    linear_probe,
    loops,
    losses,
    mcbeit,
    optim,
    preprocessor,
    safe_loading,
    sharding,
    shards,
    tokenizers,
    transforms,
)

__all__ = [
    'backbone',
    'datasets',
    'detection',
    'head',
    'hooks',
    'images',
    'linear_probe',
    'loops',
    'losses',
    'mcbeit',
    'mmcv_ops',
    'optim',
    'preprocessor',
    'safe_loading',
    'sharding',
    'shards',
    'tokenizers',
    'transforms',
]
