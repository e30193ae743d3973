"""Compare weights, states and logs of two finished runs bit by bit."""

import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# May differ between two runs of one experiment: times, memory, paths.
CLOCKS = ('time', 'data_time', 'images_per_s', 'tokenizer_share', 'memory', 'eta')
PLACES = ('cfg', 'mmengine_version', 'experiment_name', 'last_ckpt', 'best_ckpt', 'checkpoint')


def is_clock(name: str) -> bool:
    return name.rpartition('/')[2] in CLOCKS


def differences(a: Any, b: Any, where: str = '') -> list[str]:
    """Describe all entries of two trees that are not bit-equal."""
    if isinstance(a, HistoryBuffer) and isinstance(b, HistoryBuffer):
        return differences(a.data, b.data, where)
    if type(a) is not type(b):
        return [f'{where}: {type(a).__name__} and {type(b).__name__}']
    if isinstance(a, torch.Tensor):
        return _of_tensors(a, b, where)
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [f'{where}: {_first(a, b)}']
    if isinstance(a, Mapping):
        found = [f'{where}.{key}: only in one' for key in sorted(set(a) ^ set(b), key=str)]
        for key in a:
            if key in b:
                found += differences(a[key], b[key], f'{where}.{key}')
        return found
    if isinstance(a, Sequence) and not isinstance(a, str | bytes):
        if len(a) != len(b):
            return [f'{where}: {len(a)} and {len(b)} entries']
        pairs = enumerate(zip(a, b, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f'{where}[{i}]')]
    if isinstance(a, float):
        same = struct.pack('d', a) == struct.pack('d', b)
    else:
        same = a == b
    return [] if same else [f'{where}: {a!r} and {b!r}']


def _of_tensors(a: torch.Tensor, b: torch.Tensor, where: str) -> list[str]:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return [f'{where}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}']
    bits = [x.detach().cpu().contiguous().flatten().view(torch.uint8) for x in (a, b)]
    if torch.equal(*bits):
        return []
    unequal = int((a != b).sum())
    return [f'{where}: {unequal} of {a.numel()} values, by up to {(a - b).abs().max().item():.3g}']


def _first(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape:
        return f'{a.shape} and {b.shape}'
    places = np.flatnonzero(a.ravel() != b.ravel())
    if not len(places):
        return 'other bits'
    i = places[0]
    return f'{len(places)} of {a.size} values, first [{i}] {a.ravel()[i]!r} and {b.ravel()[i]!r}'


def load(path: Path) -> dict:
    """Read a checkpoint as resuming does."""
    from mmengine.runner.checkpoint import _load_checkpoint

    import mcbeit_mm  # noqa: F401  # replaces MMEngine's loader

    return _load_checkpoint(str(path), map_location='cpu', logger='silent')


def learned(checkpoint: dict) -> dict:
    """Return the parts of a checkpoint that two runs of one experiment must share."""
    parts = {key: value for key, value in checkpoint.items() if key not in ('meta', 'message_hub')}
    meta = checkpoint['meta']
    parts['meta'] = {key: meta[key] for key in ('epoch', 'iter', 'seed') if key in meta}
    if 'tokenizer' in meta:
        parts['meta.tokenizer'] = meta['tokenizer']['sha256']
    hub = checkpoint['message_hub']
    parts['scalars'] = {k: v for k, v in hub['log_scalars'].items() if not is_clock(k)}
    info = hub['runtime_info']
    parts['info'] = {k: v for k, v in info.items() if not (k in PLACES or is_clock(k))}
    return parts


def curves(work: Path) -> list[dict]:
    """Return the merged log of a work dir without times."""
    from mcbeit_mm.visualization.logs import read_scalars

    entries = read_scalars(work)
    return [{k: v for k, v in entry.items() if not is_clock(k)} for entry in entries]


def compare(work: Path, reference: Path, iters: int) -> list[str]:
    """Return all differences between two finished work dirs."""
    files = [final(folder, iters) for folder in (work, reference)]
    if not files[0]:
        return [f'no final checkpoint in {work}']
    found = differences(*(learned(load(file)) for file in files), 'checkpoint')
    found += differences(curves(work), curves(reference), 'curve')
    parts = Counter(re.match(r'curve|checkpoint\.[^.\[:]*', line)[0] for line in found)
    return [f'{len(found)} differences {dict(parts)}', *found[:3]] if found else []


def final(work: Path, iters: int) -> Path | None:
    """Return the last regular checkpoint of a finished run."""
    return next(iter(work.glob(f'iter_{iters}.pth')), None)
