"""Disk space for the checkpoints of a run."""

import math
import shutil
from pathlib import Path

from mmengine.config import Config
from torch import nn

from .batch import warn

GIB = 2**30
# Values an optimizer keeps per parameter: two moments as in Adam, unless listed here.
MOMENTS = dict(SGD=1, Lion=1)


def check_disk(cfg: Config, model: nn.Module) -> str:
    """Compare the checkpoints of a run with the free space; return both as text.

    Checkpoints of an earlier run in the work dir count as free space: they are replaced. Prints a
    warning if more than half of the space is needed.

    Raises:
        ValueError: the checkpoints do not fit.
    """
    size, number = checkpoint_size(cfg, model), planned_checkpoints(cfg)
    free, place = free_space(cfg.work_dir)
    free += sum(file.stat().st_size for file in Path(cfg.work_dir).glob('*.pth'))
    text = (
        f'{number} checkpoints of {size / GIB:.2f} GiB need {size * number / GIB:.1f} GiB, '
        f'{place} has {free / GIB:.1f} GiB'
    )
    advice = ': free space, or set default_hooks.checkpoint.max_keep_ckpts or --work-dir'
    if size * number > free:
        raise ValueError(text + advice)
    if size * number > free / 2:
        warn(cfg, text + advice)
    return text


def checkpoint_size(cfg: Config, model: nn.Module) -> int:
    """Return the bytes of fp32 weights and of the optimizer's moments of the trained ones."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    moments = MOMENTS.get(optimizer.get('type'), 2) if hook.get('save_optimizer', True) else 0
    parameters, trained = count_parameters(model)
    return 4 * (parameters + moments * trained)


def planned_checkpoints(cfg: Config) -> int:
    """Return the peak number of checkpoints: one is written before another is deleted."""
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
    if kept > 0:
        planned = min(planned, kept)
    best = hook.get('save_best') or []
    return planned + 1 + (1 if isinstance(best, str) else len(best))


def free_space(folder: str) -> tuple[int, Path]:
    """Return the free bytes on the disk of a folder, and its nearest existing parent."""
    place = Path(folder).resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, place


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of all and of trained parameters of a model."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
