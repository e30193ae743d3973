"""Compare the batch of an optimizer step with the one that the learning rate was set for."""

import os
import sys

from mmengine.config import Config

# Environment variables of the launchers.
WORLD_SIZE = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
RANK = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def world_size(launcher: str | None) -> int:
    """Return the number of processes that a launcher started; 1 for 'none'."""
    return int(os.environ.get(WORLD_SIZE.get(launcher, ''), 1))


def global_batch(cfg: Config) -> tuple[int, int, int]:
    """Return images per process and forward pass, processes, forward passes per step."""
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    return cfg.train_dataloader.batch_size, world_size(cfg.get('launcher')), accumulated


def check_batch(cfg: Config) -> None:
    """Warn if the learning rate was set for another batch size and is not scaled."""
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if not base or scaling.get('enable') or 'batch_size' not in (cfg.get('train_dataloader') or {}):
        return
    images, processes, accumulated = global_batch(cfg)
    actual = images * processes * accumulated
    if actual != base:
        warn(
            cfg,
            f'one step takes {actual} images ({images} x {processes} processes x {accumulated} '
            f'accumulated), but the learning rate is for {base:g}: use that batch, or '
            f'--auto-scale-lr to multiply the learning rate by {actual / base:g}',
        )


def warn(cfg: Config, text: str) -> None:
    """Print a warning, on the first process only."""
    if int(os.environ.get(RANK.get(cfg.get('launcher'), ''), 0)) == 0:
        print(f'WARNING: {text}', file=sys.stderr, flush=True)
