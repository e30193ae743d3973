"""Choose the checkpoint to resume, check that it fits the run, find the position in it."""

import os
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.serialization import config as serialization

from ..config.checks.batch import WORLD_SIZE
from ..fileio.integrity import damage
from ..fileio.pins import check_pin, split_pin
from ..layers.model_wrappers import unwrap
from ..weights.reading import read_checkpoint
from .experiment import check_same_run, images_per_iteration


def find_checkpoint(path: str | Path) -> Path:
    """Return the file itself, or the checkpoint of a work dir that was saved last.

    The time of saving is read from the checkpoints, so the folder may have been moved or copied.
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
    if place.is_file():
        return _undamaged(check_pin(place, pin))
    candidates = _last_saved_first(place)
    if not candidates:
        raise FileNotFoundError(f'no checkpoint {name}: give a .pth file or the work dir of a run')
    check_pin(place, pin)
    chosen, damaged = _first_good(candidates)
    for file, reason in damaged.items():
        _say(f'warning: skipping damaged checkpoint {file}: {reason}')
    if chosen is None:
        reasons = '; '.join(f'{file.name} ({reason})' for file, reason in damaged.items())
        raise ValueError(
            f'all checkpoints in {place} are damaged: {reasons}. Copy a good one there, or move '
            'them away to start from scratch'
        )
    return chosen


def checkpoint_to_resume(work_dir: str, resume: str) -> str | None:
    """Resolve `--resume`: a file, a work dir, or 'auto' for `work_dir`, None if that is empty."""
    if resume != 'auto':
        return str(find_checkpoint(resume))
    try:
        return str(find_checkpoint(work_dir))
    except FileNotFoundError:
        _say(f'no checkpoint in {work_dir}: starting from scratch')
        return None


def check_resume(cfg: Config, found: str | Path, world_size: int, allow: bool = False) -> None:
    """Refuse a checkpoint that this config cannot resume, before anything is built.

    Args:
        world_size: number of processes, see `world_size_of`.
        allow: only report different settings or numbers of processes.

    Raises:
        ValueError: bare weights, or see `experiment.check_same_run`.
    """
    checkpoint = _read_mapped(found)
    meta = _meta(checkpoint)
    if 'optimizer' not in checkpoint or 'iter' not in meta:
        raise ValueError(
            f'{found} holds weights but no training state (optimizer, iteration) to resume: start '
            'a new run from it with load_from'
        )
    check_same_run(meta, cfg, world_size, allow, _say)


def world_size_of(launcher: str) -> int:
    """Return the number of processes that a launcher of tools/train.py started."""
    return int(os.environ.get(WORLD_SIZE.get(launcher, ''), 1))


def rescaled_position(
    meta: Mapping[str, Any],
    old_batch: int,
    new_batch: int,
    epoch_lengths: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Convert 'epoch' and 'iter' of meta to another number of images per iteration.

    Whole epochs stay whole. Within an epoch, the images seen are rounded down to whole batches:
    fewer than `new_batch` are repeated, none is skipped.

    Args:
        epoch_lengths: iterations per epoch, old and new; None for a loop over iterations.
    """
    epoch, iteration = meta['epoch'], meta['iter']
    if epoch_lengths is None:
        return epoch, iteration * old_batch // new_batch
    old_length, new_length = epoch_lengths
    done = (iteration - epoch * old_length) * old_batch // new_batch
    return epoch, epoch * new_length + min(done, new_length)


def move_position(meta: dict, facts: Mapping[str, Any]) -> None:
    """Convert epoch and iteration in a checkpoint's meta to the batch size of `run_facts`.

    Call it in `after_load_checkpoint`: MMEngine reads the position from meta afterwards.
    """
    if saved := meta.get('run'):
        lengths = saved['epoch_length'], facts['epoch_length']
        batches = images_per_iteration(saved), images_per_iteration(facts)
        place = rescaled_position(meta, *batches, None if None in lengths else lengths)
        meta['epoch'], meta['iter'] = place


def skip_initial_weights(runner: Runner) -> None:
    """Do not load the pretrained weights that the config names: the checkpoint replaces them."""
    model = unwrap(runner.model)
    if hasattr(model, 'backbone'):
        model.backbone.init_cfg = None


def _read_mapped(path: str | Path) -> dict:
    """Read a checkpoint with its tensors left in the memory-mapped file."""
    try:
        with serialization.patch('load.mmap', True):
            return read_checkpoint(path)
    except ValueError:  # files from before torch 1.6 cannot be mapped; a damaged one fails again
        return read_checkpoint(path)


def _meta(checkpoint: Mapping[str, Any]) -> dict:
    meta = checkpoint.get('meta')
    return dict(meta) if isinstance(meta, Mapping) else {}


def _last_saved_first(folder: Path) -> list[tuple[Path, str]]:
    """Return the checkpoints of a work dir with why they cannot be read, those first."""
    note = folder / 'last_checkpoint'
    noted = Path(note.read_text(errors='replace').strip()) if note.is_file() else Path()
    if note.is_file() and not any(folder.glob('*.pth')):
        folder = noted.parent  # out_dir of the checkpoint hook
        if not any(folder.glob('*.pth')):
            raise ValueError(
                f'{note} names {noted}, but {folder} has no checkpoint: give the file, or remove '
                'last_checkpoint to start from scratch'
            )
    found = []
    for file in filter(Path.is_file, folder.glob('*.pth')):
        try:
            error, order = '', _saving_order(file, file.name == noted.name)
        except FileNotFoundError:  # removed meanwhile by a run that keeps only its newest
            continue
        except Exception as exception:  # damaged bytes make the parsers raise almost anything
            error, order = str(exception) or type(exception).__name__, ()
        found.append((bool(error), order, file, error))
    return [(file, error) for *_, file, error in sorted(found, reverse=True)]


def _saving_order(file: Path, is_noted: bool) -> tuple:
    """Return a key that is greatest for the checkpoint saved last.

    Time comes before iteration: a run that was resumed from an earlier checkpoint continues there.
    Files without a time are ordered by `last_checkpoint`, then by modification time.
    """
    _check_pickle(file)
    checkpoint = _read_mapped(file)
    meta = _meta(checkpoint)
    iteration = meta['iter'] if isinstance(meta.get('iter'), int) else -1
    time_saved, modified = _saving_time(meta), file.stat().st_mtime
    return 'optimizer' in checkpoint, time_saved, iteration, is_noted, modified


def _saving_time(meta: Mapping[str, Any]) -> float:
    """Return seconds since 1970 from SafeCheckpointHook, or from MMEngine's local time."""
    try:
        return float(
            meta.get('saved_at') or time.mktime(time.strptime(meta['time'], '%Y%m%d_%H%M%S'))
        )
    except (KeyError, TypeError, ValueError):
        return 0.0


def _check_pickle(file: Path) -> None:
    """Check the CRC-32 of the record that holds meta, so that a damaged time is not trusted."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith('/data.pkl'):
                    archive.read(name)


def _first_good(candidates: list[tuple[Path, str]]) -> tuple[Path | None, dict[Path, str]]:
    """Return the first undamaged checkpoint, and the damage of those before it."""
    damaged: dict[Path, str] = {}
    for file, error in candidates:
        reason = damage(file) or error
        if not reason:
            return file, damaged
        damaged[file] = reason
    return None, damaged


def _undamaged(file: Path) -> Path:
    if reason := damage(file):
        good, _ = _first_good(_last_saved_first(file.parent))
        hint = f'the newest good one in its folder is {good}' if good else 'its folder has no other'
        raise ValueError(f'checkpoint {file} is damaged ({reason}); {hint}')
    return file


def _say(text: str) -> None:
    """Print to stderr on the first process."""
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
        print(text, file=sys.stderr)
