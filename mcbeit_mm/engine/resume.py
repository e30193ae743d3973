"""Which checkpoint a run goes on from, whether it may, and where it then stands."""

import os
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
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

BEST = 'best_'  # how MMEngine's save_best names a copy, which has no optimizer state


def find_checkpoint(path: str | Path) -> Path:
    """Return the file itself, or the checkpoint of a work dir that was saved last.

    A checkpoint says itself when it was saved, so a folder may have been moved or copied. Damaged
    files are reported and passed over; `best_*.pth` counts only if there is nothing else.

    Args:
        path: a work dir or a file, which may be pinned as `FILE#sha256=HEX`.

    Raises:
        FileNotFoundError: there is no checkpoint at all.
        ValueError: the file is damaged, or all those of the folder are.
    """
    name, pin = split_pin(path)
    place = Path(name).expanduser()
    if place.is_file():
        return _undamaged(check_pin(place, pin))
    candidates = _last_saved_first(place)
    if not candidates:
        raise FileNotFoundError(f'no checkpoint {name}: give a .pth file or the work dir of a run')
    check_pin(place, pin)
    chosen, refused = _first_good(candidates)
    for file, reason in refused.items():
        _say(f'warning: {file} is damaged and passed over: {reason}')
    if chosen is None:
        reasons = '; '.join(f'{file.name} ({reason})' for file, reason in refused.items())
        raise ValueError(
            f'no good checkpoint in {place}: {reasons}. Copy a good one there, or move these away '
            'to start from the beginning'
        )
    _remark(chosen, candidates)
    return chosen.file


def checkpoint_to_resume(work_dir: str, resume: str) -> str | None:
    """What `--resume` means: a file, the newest of a work dir, or 'auto', which may start anew."""
    if resume != 'auto':
        return str(find_checkpoint(resume))
    try:
        return str(find_checkpoint(work_dir))
    except FileNotFoundError:
        _say(f'nothing to resume in {work_dir}: starting from the beginning')
        return None


def check_resume(cfg: Config, found: str | Path, world_size: int, allow: bool = False) -> None:
    """Refuse a checkpoint from which the run of this config cannot go on, before it is built.

    Args:
        world_size: number of processes, see `world_size_of`.
        allow: other settings and numbers of processes are reported, not refused.

    Raises:
        ValueError: mere weights, or `experiment.check_same_run` found differences.
    """
    checkpoint = _read_lazily(found)
    meta = _meta(checkpoint)
    if 'optimizer' not in checkpoint or 'iter' not in meta:
        raise ValueError(
            f'{found} holds weights but not the state of a run (optimizer, iteration), so none can '
            'go on from it: start a new run from these weights with load_from'
        )
    check_same_run(meta, cfg, world_size, allow, _say)


def world_size_of(launcher: str) -> int:
    """Number of processes that a launcher of tools/train.py started."""
    names = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
    return int(os.environ.get(names[launcher], 1)) if launcher in names else 1


def rescaled_position(
    meta: Mapping[str, Any],
    old_batch: int,
    new_batch: int,
    epoch_lengths: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Where a run stands, counted in iterations of another size.

    Whole epochs stay whole. Inside of one, the images seen are rounded down to whole batches, so
    fewer than `new_batch` are seen again and none is left out.

    Args:
        meta: of the checkpoint, with 'epoch' and 'iter'.
        old_batch: images of all processes per iteration, see `experiment.images_per_iteration`.
        new_batch: the same now.
        epoch_lengths: iterations per epoch then and now; None for a loop over iterations.

    Returns:
        epoch and iteration, to take the place of those of `meta`.
    """
    epoch, iteration = meta['epoch'], meta['iter']
    if epoch_lengths is None:
        return epoch, iteration * old_batch // new_batch
    old_length, new_length = epoch_lengths
    done = (iteration - epoch * old_length) * old_batch // new_batch
    return epoch, epoch * new_length + min(done, new_length)


def move_position(meta: dict, facts: Mapping[str, Any]) -> None:
    """Count the position of a loaded checkpoint in the iterations of this run (`run_facts`).

    For a hook's `after_load_checkpoint`, behind which MMEngine takes epoch and iteration from meta.
    """
    if saved := meta.get('run'):
        lengths = saved['epoch_length'], facts['epoch_length']
        batches = images_per_iteration(saved), images_per_iteration(facts)
        place = rescaled_position(meta, *batches, None if None in lengths else lengths)
        meta['epoch'], meta['iter'] = place


def read_meta(path: str | Path) -> dict:
    """Read checkpoint['meta'] without its tensors and without running code from the file."""
    return _meta(_read_lazily(path))


def skip_initial_weights(runner: Runner) -> None:
    """Leave out the pretrained weights of a run that is resumed; its config still names them."""
    model = unwrap(runner.model)
    if hasattr(model, 'backbone'):
        model.backbone.init_cfg = None


def _read_lazily(path: str | Path) -> dict:
    try:
        with serialization.patch('load.mmap', True):
            return read_checkpoint(path)
    except ValueError:  # a file of the old format cannot be mapped; a damaged one fails again
        return read_checkpoint(path)


def _meta(checkpoint: Mapping[str, Any]) -> dict:
    meta = checkpoint.get('meta')
    return dict(meta) if isinstance(meta, Mapping) else {}


@dataclass(order=True, frozen=True)
class _Candidate:
    """A checkpoint of a work dir; its fields in the order by which the last saved is the greatest.

    The time of saving comes before the iteration: who went back to an earlier checkpoint means to
    go on from there.
    """

    is_regular: bool
    error: str  # unreadable ones come first, to be reported
    has_optimizer: bool = False  # averaged or published weights have none
    saved: float = 0
    iteration: int = -1
    epoch: int = -1
    is_noted: bool = False  # in last_checkpoint
    date: float = 0
    file: Path = Path()


def _last_saved_first(folder: Path) -> list[_Candidate]:
    noted = folder / 'last_checkpoint'
    noted_name = Path(noted.read_text(errors='replace').strip()).name if noted.is_file() else None
    if noted_name and not any(folder.glob('*.pth')):  # out_dir of the checkpoint hook
        folder = Path(noted.read_text(errors='replace').strip()).parent
        if not any(folder.glob('*.pth')):
            raise ValueError(
                f'{noted} names {folder / noted_name}, where no checkpoint lies: give its file, or '
                'remove the note to start from the beginning'
            )
    files = filter(Path.is_file, folder.glob('*.pth'))
    found = (_candidate(file, file.name == noted_name) for file in files)
    return sorted(filter(None, found), reverse=True)


def _candidate(file: Path, is_noted: bool) -> _Candidate | None:
    is_regular = not file.name.startswith(BEST)
    try:
        _check_pickle(file)
        checkpoint, date = _read_lazily(file), file.stat().st_mtime
    except FileNotFoundError:  # deleted meanwhile by a run that keeps only its newest
        return None
    except Exception as error:  # damaged bytes make the parsers raise almost anything
        return _Candidate(is_regular, str(error) or type(error).__name__, file=file)
    meta = _meta(checkpoint)
    position = (meta[key] if isinstance(meta.get(key), int) else -1 for key in ('iter', 'epoch'))
    has_optimizer, saved = 'optimizer' in checkpoint, _time_of_saving(meta)
    return _Candidate(is_regular, '', has_optimizer, saved, *position, is_noted, date, file)


def _time_of_saving(meta: Mapping[str, Any]) -> float:
    """Seconds since the epoch, by SafeCheckpointHook, or MMEngine's local time."""
    try:
        return float(
            meta.get('saved_at') or time.mktime(time.strptime(meta['time'], '%Y%m%d_%H%M%S'))
        )
    except (KeyError, TypeError, ValueError):
        return 0.0


def _check_pickle(file: Path) -> None:
    """Compare the CRC-32 of the record that holds meta: its age must not be damaged unnoticed."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith('/data.pkl'):
                    archive.read(name)


def _first_good(candidates: list[_Candidate]) -> tuple[_Candidate | None, dict[Path, str]]:
    """The first undamaged one, and what is wrong with those before it."""
    refused: dict[Path, str] = {}
    for candidate in candidates:
        reason = damage(candidate.file) or candidate.error
        if not reason:
            return candidate, refused
        refused[candidate.file] = reason
    return None, refused


def _undamaged(file: Path) -> Path:
    if reason := damage(file):
        good, _ = _first_good(_last_saved_first(file.parent))
        hint = f'the newest good one beside it is {good.file}' if good else 'none beside it is good'
        raise ValueError(f'the checkpoint {file} is damaged ({reason}); {hint}')
    return file


def _remark(chosen: _Candidate, candidates: list[_Candidate]) -> None:
    """Say what one might not expect of the choice."""
    if not chosen.is_regular:
        _say(f'warning: {chosen.file} is used, the only good checkpoint there')
        return
    ahead = max(candidates, key=lambda other: other.iteration if other.is_regular else -1)
    if ahead.iteration > chosen.iteration and ahead.saved < chosen.saved:
        _say(
            f'note: {chosen.file.name} (iteration {chosen.iteration}) was saved last; '
            f'{ahead.file.name} is older, though at iteration {ahead.iteration}'
        )


def _say(text: str) -> None:
    """Tell the user, once for all processes."""
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
        print(text, file=sys.stderr)
