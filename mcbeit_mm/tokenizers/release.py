"""Tokenizer weights on disk: weight files of all kinds and the release folders of VQGANs."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.logging import print_log
from torch import Tensor, nn

from ..fileio.pins import check_pin, split_pin
from ..weights.reading import read_checkpoint, state_dict_of

SIZES = ('ddconfig', 'n_embed', 'embed_dim')
DECODER = ('decoder.', 'post_quant_conv.')
WEIGHTS = ('last.ckpt', 'checkpoints/last.ckpt')  # the second as taming-transformers saves it
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
        checkpoint: a file, or a folder that holds one of `names`. A pin (`#sha256=HEX`) is that
            of the weight file, also for a folder.
        hint: what to do, for messages.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder holds none of `names`.
        ValueError: the file does not match its pin.
    """
    if checkpoint is None:
        return None
    name, pin = split_pin(checkpoint)
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f'No tokenizer at {path}: {hint}')
    if path.is_dir():
        path = _files_in(path, names, hint)[0]
    return check_pin(path, pin)


def locate(
    checkpoint: str | os.PathLike | None, sizes: Mapping[str, Any], target: str
) -> tuple[Path | None, dict[str, Any]]:
    """Return the weight file (None without checkpoint) and the sizes of a VQGAN.

    Args:
        checkpoint: a release folder (``model.yaml`` and ``last.ckpt``, or taming's layout of
            ``configs/*.yaml`` and ``checkpoints/last.ckpt``), a file, or None.
        sizes: the given ``ddconfig``, ``n_embed`` and ``embed_dim``; None where not given.
        target: class that the folder's YAML should name.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: sizes are missing or contradict the folder, or it holds another kind of VQGAN.
    """
    given = {name: value for name, value in sizes.items() if value is not None}
    if checkpoint is not None and (folder := Path(split_pin(checkpoint)[0])).is_dir():
        stored = _read_sizes(folder, target)
        _check_agreement(given, stored, folder)
        return find_weights(checkpoint, WEIGHTS, HINT), stored
    file = find_weights(checkpoint, WEIGHTS, HINT)
    if absent := [name for name in SIZES if name not in given]:
        raise ValueError(
            f'{", ".join(absent)} not given: give {", ".join(SIZES)}, or a checkpoint folder with '
            f'a model.yaml (got {checkpoint=})'
        )
    return file, given


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, also of those under ``weights``."""
    content = read_checkpoint(file)
    inner = content.get('weights')
    return state_dict_of(inner if isinstance(inner, dict) else content)


def load_weights(
    model: nn.Module,
    file: Path | None,
    decoder: tuple[str, ...] = DECODER,
    sizes: Sequence[str] = SIZES,
    read: Callable[[Path], dict[str, Tensor]] = read_weights,
) -> bool:
    """Load a weight file, if given, into `model`; return False if it has no decoder weights.

    Tensors that the model lacks (losses, discriminator) are ignored.

    Args:
        decoder: name prefixes of weights that only decoding needs.
        sizes: constructor arguments that determine the shapes, for messages.

    Raises:
        ValueError: tensors are missing (the decoder may be, as a whole) or have other shapes.
    """
    if file is None:
        print_log(f'{type(model).__name__}: no checkpoint, random weights', 'current')
        return True
    weights, expected = read(file), model.state_dict()
    has_decoder = any(name.startswith(decoder) for name in weights)
    wrong = [
        f'{name} has shape {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}'
        if name in weights
        else f'{name} is missing'
        for name, tensor in expected.items()
        if (has_decoder or not name.startswith(decoder))
        and (name not in weights or weights[name].shape != tensor.shape)
    ]
    if wrong:
        raise ValueError(
            f'{file} does not fit {type(model).__name__}: {"; ".join(wrong[:4])} '
            f'({len(wrong)} of {len(expected)} parameters). Check {", ".join(sizes)}'
        )
    if unused := [name for name in weights if name not in expected]:
        print_log(f'{file}: {len(unused)} unused entries ({unused[0]}, ...)', 'current')
    model.load_state_dict({k: v for k, v in weights.items() if k in expected}, strict=False)
    return has_decoder


def write_release(folder: str | os.PathLike, model: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Write a VQGAN as ``model.yaml`` and ``last.ckpt``, each atomically."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = json.loads(json.dumps({name: sizes[name] for name in SIZES}))  # plain types for YAML
    content = {'model': {'target': model.target, 'params': params}}
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    (folder / 'model.yaml.part').write_text(yaml.safe_dump(content, sort_keys=False))
    torch.save({'state_dict': state}, folder / 'last.ckpt.part')
    for name in ('model.yaml', 'last.ckpt'):
        os.replace(folder / f'{name}.part', folder / name)


def _files_in(folder: Path, patterns: Sequence[str], hint: str) -> list[Path]:
    """Return the files of a folder that match the patterns, at least one, in their order."""
    files = [file for p in patterns for file in sorted(folder.glob(p)) if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f'{folder} has no {" or ".join(patterns)} (it holds {sorted(os.listdir(folder))[:10]}):'
            f' {hint}'
        )
    return files


def _read_sizes(folder: Path, target: str) -> dict[str, Any]:
    """Return model.params of the first YAML file that has them (configs/ holds others too)."""
    for file in _files_in(folder, ('model.yaml', 'configs/*.yaml'), HINT):
        try:
            model = yaml.safe_load(file.read_text())['model']
            sizes = {name: model['params'][name] for name in SIZES}
            _check_plain(sizes | dict(sizes['ddconfig'], ddconfig=None))
            break
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            reason = f'{type(error).__name__}: {error}'
    else:
        raise ValueError(f'{file}: no model.params with {", ".join(SIZES)} ({reason})')
    kind = str(model.get('target', '')).rpartition('.')[2]
    if kind in TOKENIZERS and kind != target.rpartition('.')[2]:
        raise ValueError(f"{file} describes {kind}: use type='{TOKENIZERS[kind]}'")
    return sizes


def _check_plain(values: Mapping[str, Any]) -> None:
    """Raise TypeError for values that are no size: YAML aliases can nest lists without limit."""
    for name, value in values.items():
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, int | float | str | None) for entry in entries):
            raise TypeError(f'{name} is neither a number nor a list of numbers')


def _check_agreement(given: Mapping[str, Any], stored: Mapping[str, Any], folder: Path) -> None:
    def flat(sizes: Mapping[str, Any]) -> dict[str, str]:
        entries = {f'ddconfig.{k}': v for k, v in sizes.get('ddconfig', {}).items()} | dict(sizes)
        entries.pop('ddconfig', None)
        return {k: json.dumps(v) for k, v in entries.items()}  # (1, 2) equals [1, 2]

    theirs = flat(stored)
    wrong = {k: v for k, v in flat(given).items() if v != theirs.get(k)}
    if wrong:
        listed = ', '.join(f'{k}={v} (there {theirs.get(k)})' for k, v in wrong.items())
        raise ValueError(f'{listed} contradicts {folder}: omit these arguments')
