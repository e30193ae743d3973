"""Find tokenizer weights on disk; read and write release folders of VQGANs."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ..fileio.atomic_files import write_atomically
from ..fileio.pins import split_pin

SIZES = ('ddconfig', 'n_embed', 'embed_dim')
# As written here, in the released folders, and in the runs of taming-transformers.
WEIGHTS = ('last.ckpt', 'checkpoints/last.ckpt')
YAMLS = ('model.yaml', 'configs/model.yaml', 'configs/*-project.yaml')
TOKENIZERS = {'GumbelVQ': 'GumbelVQGANTokenizer', 'EMAVQ': 'EMAVQGANTokenizer'}  # by taming's class
HINT = (
    'expected a folder with model.yaml and last.ckpt, or a weight file. Train one with a config of '
    'configs/tokenizer or configs/demo (writes <work_dir>/tokenizer), or unpack the released '
    'vqgan_gumbel_f8'
)


def find_weights(
    checkpoint: str | os.PathLike | None, names: Sequence[str], hint: str
) -> Path | None:
    """Return the weight file of a checkpoint, or None without a checkpoint.

    Args:
        checkpoint: a file, or a folder that has one of `names`; a pin (`#sha256=HEX`) is ignored.
        hint: advice for error messages.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without any of `names`.
    """
    if checkpoint is None:
        return None
    path = Path(split_pin(checkpoint)[0])
    if not path.exists():
        raise FileNotFoundError(f'No tokenizer at {path}: {hint}')
    return _find_first(path, names, hint) if path.is_dir() else path


def find_sizes(
    checkpoint: str | os.PathLike | None, given: Mapping[str, Any], target: str
) -> dict[str, Any]:
    """Return the `ddconfig`, `n_embed` and `embed_dim` of a VQGAN.

    Args:
        checkpoint: a release folder (``model.yaml`` and ``last.ckpt``, or taming's layout of
            ``configs/model.yaml`` or ``configs/*-project.yaml`` and ``checkpoints/last.ckpt``), a
            file, or None.
        given: the sizes, None if unknown; required unless `checkpoint` is a folder.
        target: class that the folder's YAML should name.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: sizes are missing or contradict the folder, or it holds another kind of VQGAN.
    """
    given = {name: value for name, value in given.items() if value is not None}
    folder = None if checkpoint is None else Path(split_pin(checkpoint)[0])
    if folder and folder.is_dir():
        stored = _read_sizes(folder, target)
        if wrong := [name for name in given if _as_json(given[name]) != _as_json(stored[name])]:
            raise ValueError(f'{", ".join(wrong)} contradict {folder}: omit these arguments')
        return stored
    find_weights(checkpoint, WEIGHTS, HINT)  # reports a missing file before missing sizes
    if absent := [name for name in SIZES if name not in given]:
        raise ValueError(
            f'{", ".join(absent)} not given: pass {", ".join(SIZES)}, or a checkpoint folder with '
            f'a model.yaml (got {checkpoint=})'
        )
    return given


def write_release(folder: str | os.PathLike, model: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Write a VQGAN as ``model.yaml`` and ``last.ckpt``, each atomically."""
    folder, weights = Path(folder), io.BytesIO()
    folder.mkdir(parents=True, exist_ok=True)
    params = json.loads(_as_json({name: sizes[name] for name in SIZES}))  # plain types for YAML
    content = {'model': {'target': model.target, 'params': params}}
    write_atomically(folder / 'model.yaml', yaml.safe_dump(content, sort_keys=False))
    torch.save({'state_dict': {k: v.cpu() for k, v in model.state_dict().items()}}, weights)
    write_atomically(folder / 'last.ckpt', weights.getbuffer())


def _find_first(folder: Path, patterns: Sequence[str], hint: str) -> Path:
    """Return the first file of a folder that matches a pattern."""
    for pattern in patterns:
        if files := [file for file in sorted(folder.glob(pattern)) if file.is_file()]:
            return files[0]
    raise FileNotFoundError(f'{folder} has no {" or ".join(patterns)}: {hint}')


def _read_sizes(folder: Path, target: str) -> dict[str, Any]:
    file = _find_first(folder, YAMLS, HINT)
    try:
        model = yaml.safe_load(file.read_text())['model']
        sizes = {name: model['params'][name] for name in SIZES}
        _check_sizes(sizes | dict(sizes['ddconfig'], ddconfig=None))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        names = ', '.join(SIZES)
        raise ValueError(f'{file}: no model.params with {names} ({error!r})') from error
    kind = str(model.get('target', '')).rpartition('.')[2]
    if kind in TOKENIZERS and kind != target.rpartition('.')[2]:
        raise ValueError(f"{file} describes {kind}: use type='{TOKENIZERS[kind]}'")
    return sizes


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Raise TypeError for values that are not sizes: YAML aliases can nest lists without limit."""
    for name, value in values.items():
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, int | float | str | None) for entry in entries):
            raise TypeError(f'{name} is neither a number nor a list of numbers')


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # (1, 2) equals [1, 2]
