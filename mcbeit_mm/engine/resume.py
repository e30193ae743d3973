"""Choose the checkpoint to resume, check that it fits the run, find the position in it."""

import math
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.serialization import config as serialization

from ..fileio.integrity import damage
from ..fileio.pins import check_pin, split_pin
from ..layers.model_wrappers import unwrap
from ..weights.reading import read_checkpoint
from .experiment import check_same_run, images_per_iteration


def find_checkpoint(path: str | Path) -> Path:
    """Return the file itself, or the checkpoint of a work dir that was saved last.

    Damaged files are skipped with a warning. Files without optimizer state (`best_*.pth`,
    published or averaged weights) count only if there are no others.

    Args:
        path: a work dir or a file, which may be pinned as `FILE#sha256=HEX`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file, or every file of the folder, is damaged.
    """
    name, pin = split_pin(path)
    place = Path(name).expanduser()
    if place.exists():
        check_pin(place, pin)
    if place.is_file():
        if reason := damage(place):
            raise ValueError(
                f'checkpoint {place} is damaged ({reason}): pass the folder {place.parent} to use '
                'its newest good one'
            )
        return place
    damaged = []
    for file, error in _newest_first(place):
        reason = damage(file) or error
        if not reason:
            return file
        _print_on_main(f'warning: skipping damaged checkpoint {file}: {reason}')
        damaged.append(file.name)
    if damaged:
        raise ValueError(
            f'all checkpoints in {place} are damaged: {", ".join(damaged)}. Copy a good one there, '
            'or move them away to start from scratch'
        )
    raise FileNotFoundError(f'no checkpoint {name}: pass a .pth file or the work dir of a run')


def checkpoint_to_resume(work_dir: str, resume: str) -> str | None:
    """Resolve `--resume`: a file, a work dir, or 'auto' for `work_dir`, None if that is empty."""
    if resume != 'auto':
        return str(find_checkpoint(resume))
    try:
        return str(find_checkpoint(work_dir))
    except FileNotFoundError:
        _print_on_main(f'no checkpoint in {work_dir}: starting from scratch')
        return None


def check_resume(cfg: Config, found: str | Path, world_size: int, allow: bool = False) -> None:
    """Refuse a checkpoint that this config cannot resume, before anything is built.

    Args:
        world_size: number of processes.
        allow: only report different settings or numbers of processes.

    Raises:
        ValueError: bare weights, or see `experiment.check_same_run`.
    """
    checkpoint = _read_mapped(found)
    meta = checkpoint.get('meta') or {}
    if 'optimizer' not in checkpoint or 'iter' not in meta:
        raise ValueError(
            f'{found} holds weights but no training state (optimizer, iteration) to resume: start '
            'a new run from it with load_from'
        )
    check_same_run(meta, cfg, world_size, allow, _print_on_main)


def move_position(meta: dict, facts: Mapping[str, Any]) -> None:
    """Convert epoch and iteration in a checkpoint's meta to the batch size of `run_facts`.

    Whole epochs stay whole. Within an epoch, the images seen are rounded down to whole batches:
    fewer than one batch is repeated, none is skipped. Call it in `after_load_checkpoint`: MMEngine
    reads the position from meta afterwards.
    """
    saved = meta.get('run')
    if not saved:
        return
    old_batch, new_batch = images_per_iteration(saved), images_per_iteration(facts)
    old_length, new_length = saved['epoch_length'], facts['epoch_length']
    if old_length is None or new_length is None:  # a loop over iterations
        meta['iter'] = meta['iter'] * old_batch // new_batch
        return
    done = (meta['iter'] - meta['epoch'] * old_length) * old_batch // new_batch
    meta['iter'] = meta['epoch'] * new_length + min(done, new_length)


def skip_initial_weights(runner: Runner) -> None:
    """Do not load the pretrained weights that the config names: the checkpoint replaces them."""
    model = unwrap(runner.model)
    if hasattr(model, 'backbone'):
        model.backbone.init_cfg = None


def _newest_first(folder: Path) -> list[tuple[Path, str]]:
    """Return the checkpoints of a work dir, unreadable ones first, with the error or ''."""
    note, files = folder / 'last_checkpoint', list(folder.glob('*.pth'))
    if not files and note.is_file():  # out_dir of the checkpoint hook
        folder = Path(note.read_text(errors='replace').strip()).parent
        files = list(folder.glob('*.pth'))
        if not files:
            raise ValueError(
                f'{note} names a checkpoint in {folder}, which has none: pass a file, or remove '
                'last_checkpoint to start from scratch'
            )
    found = []
    for file in files:
        try:
            order, error = _saving_order(file), ''
        except FileNotFoundError:  # removed meanwhile by a run that keeps only its newest
            continue
        except Exception as exception:  # damaged bytes make the parsers raise almost anything
            order, error = (True, math.inf), str(exception) or type(exception).__name__
        found.append((order, file, error))
    return [(file, error) for _, file, error in sorted(found, reverse=True)]


def _saving_order(file: Path) -> tuple[bool, float]:
    """Return a key that is greatest for the last saved checkpoint with optimizer state.

    The time is that of SafeCheckpointHook, so the folder may have been moved or copied; files of
    other hooks are ordered by modification time.
    """
    _check_pickle(file)
    checkpoint = _read_mapped(file)
    saved_at = (checkpoint.get('meta') or {}).get('saved_at')
    return 'optimizer' in checkpoint, float(saved_at or file.stat().st_mtime)


def _check_pickle(file: Path) -> None:
    """Check the CRC-32 of the record that holds meta, so that a damaged time is not trusted."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith('/data.pkl'):
                archive.read(name)


def _read_mapped(path: str | Path) -> dict:
    """Read a checkpoint with its tensors left in the memory-mapped file."""
    with serialization.patch('load.mmap', True):
        return read_checkpoint(path)


def _print_on_main(text: str) -> None:
    """Print to stderr on the first process."""
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
        print(text, file=sys.stderr)
