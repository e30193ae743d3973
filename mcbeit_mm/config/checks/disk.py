"""Disk space for the checkpoints of a run."""

import math
import shutil
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from .batch import warn

GIB = 2**30
# Values an optimizer keeps per parameter: two moments as in Adam, unless listed here.
MOMENTS = dict(SGD=1, Lion=1)


def check_disk(cfg: Config, parameters: int, trained: int) -> None:
    """Raise ValueError if the checkpoints do not fit on the disk; warn if they fill half of it.

    Checkpoints of an earlier run in the work dir count as free space: they are replaced.

    Args:
        parameters: number of all parameters.
        trained: number of those that are trained.
    """
    size, number = checkpoint_size(cfg, parameters, trained), planned_checkpoints(cfg)
    free, place = free_space(cfg.work_dir)
    old = sum(file.stat().st_size for file in Path(cfg.work_dir).glob('*.pth'))
    needed = size * number - old
    text = (
        f'{number} checkpoints of {size / GIB:.2f} GiB need {size * number / GIB:.1f} GiB, '
        f'{place} has {(free + old) / GIB:.1f} GiB: '
    )
    advice = 'free space, or set default_hooks.checkpoint.max_keep_ckpts or --work-dir'
    if needed > free:
        raise ValueError(text + advice)
    if needed > free / 2:
        warn(cfg, text + advice)


def checkpoint_size(cfg: Config, parameters: int, trained: int) -> int:
    """Bytes of a checkpoint: fp32 weights, and the optimizer's moments of the trained ones."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    moments = MOMENTS.get(optimizer.get('type'), 2) if hook.get('save_optimizer', True) else 0
    return 4 * (parameters + moments * trained)


def planned_checkpoints(cfg: Config) -> int:
    """Largest number of checkpoints at a time: one is written before another is deleted."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not hook:
        return 0
    train = cfg.get('train_cfg') or {}
    length = train.get('max_epochs' if hook.get('by_epoch', True) else 'max_iters')
    interval, kept = hook.get('interval', -1), hook.get('max_keep_ckpts', -1)
    if interval <= 0:
        planned = 1  # save_last
    else:  # epochs may have any number of iterations
        planned = math.ceil(length / interval) if length else max(kept, 1)
    best = hook.get('save_best') or []
    return (
        (min(planned, kept) if kept > 0 else planned)
        + 1
        + (1 if isinstance(best, str) else len(best))
    )


def free_space(folder: str) -> tuple[int, Path]:
    """Free bytes of the disk for a folder, and its nearest existing parent."""
    place = Path(folder).resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, place


def count_parameters(cfg: Config) -> tuple[int, int]:
    """All and trained parameters of the backbone, or of a model without one.

    A lower bound that reads no file and, on the meta device, takes no memory.
    """
    config = cfg.model.get('backbone') or dict(cfg.model, perceptual=None, data_preprocessor=None)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    try:
        with torch.device('meta'):
            model = MODELS.build(config)
    except (RuntimeError, NotImplementedError):  # its constructor computes with tensors
        model = MODELS.build(config)
    return count(model)


def count(model: nn.Module) -> tuple[int, int]:
    """Numbers of all parameters of a model and of the trained ones."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
