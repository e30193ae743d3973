"""mcbeit_mm: mc-BEiT pretraining and transfer on OpenMMLab.

Importing the package registers every component in MMEngine's root registries and provides mmcv's
missing ops.
"""

__version__ = '0.1.0'

from . import mmcv_ops

mmcv_ops.install()  # before anything imports mmcv.ops

# ruff: noqa: E402, F401
from . import backbone, checkpoint, detection, head, losses, mcbeit, optim, tokenizers, transforms
from .cached_targets import crops, tokenizer
from .datasets import images, photo_folder, shards
from .engine import hooks, loops, sharding
from .evaluation import linear_probe
from .layers import preprocessor
from .weights import mmengine_loading
