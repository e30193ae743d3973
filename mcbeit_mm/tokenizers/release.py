"""VQGAN weights on disk: the released folders (model.yaml and last.ckpt) and bare state dicts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.logging import print_log
from torch import Tensor, nn

from ..fileio.pins import check_pin, split_pin

SIZES = ('ddconfig', 'n_embed', 'embed_dim')
TOKENIZERS = {  # class in taming-transformers -> who loads it here
    'GumbelVQ': 'GumbelVQGANTokenizer',
    'EMAVQ': 'EMAVQGANTokenizer',
}
DECODER = ('decoder.', 'post_quant_conv.')
HOW_TO_GET_ONE = (
    'train one with a config of configs/tokenizer or configs/demo (it writes '
    '<work_dir>/tokenizer), or unpack the released folder vqgan_gumbel_f8 there'
)


def locate(
    checkpoint: str | os.PathLike | None, sizes: Mapping[str, Any], target: str
) -> tuple[Path | None, dict[str, Any]]:
    """Find the weight file and the sizes of a VQGAN.

    Args:
        checkpoint: a folder with ``model.yaml`` and ``last.ckpt`` (or, as taming-transformers
            lays them out, ``configs/*.yaml`` and ``checkpoints/last.ckpt``), a file, or None. A
            pin (``#sha256=HEX``) is that of the weight file, also behind a folder.
        sizes: ``ddconfig``, ``n_embed`` and ``embed_dim`` as given by the user, None where not.
        target: class that the folder's YAML should name, as far as its name is known.

    Returns:
        The weight file (None without checkpoint) and the complete sizes.

    Raises:
        FileNotFoundError: no such file or folder, or a part of the folder is missing.
        ValueError: sizes are neither given nor in the folder, or contradict it; or the folder
            holds a VQGAN of another kind; or the weights are not those of the pin.
    """
    given = {name: value for name, value in sizes.items() if value is not None}
    checkpoint, pin = (None, None) if checkpoint is None else split_pin(checkpoint)
    if checkpoint is not None and Path(checkpoint).is_dir():
        folder = Path(checkpoint)
        stored = _read_sizes(folder, target)
        _check_agreement(given, stored, folder)
        return check_pin(_find_weights(folder), pin), stored
    if checkpoint is not None and not Path(checkpoint).exists():
        raise FileNotFoundError(
            f'No tokenizer at {checkpoint}: expected a folder with model.yaml and last.ckpt, or a '
            f'weight file (.ckpt, .pth, .pt, .safetensors); {HOW_TO_GET_ONE}'
        )
    if absent := [name for name in SIZES if name not in given]:
        raise ValueError(
            f'{", ".join(absent)} not given: only a checkpoint folder with a model.yaml brings the '
            f'sizes along (checkpoint={checkpoint}); give {", ".join(SIZES)}'
        )
    return (None if checkpoint is None else check_pin(Path(checkpoint), pin)), given


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: Path,
    decoder: tuple[str, ...] = DECODER,
    sizes: tuple[str, ...] = SIZES,
) -> bool:
    """Copy a tokenizer's weights into ``model``; False when they hold no decoder at all.

    Entries the model does not have (losses, discriminator) are dropped with one log line.

    Args:
        source: where the weights are from, for messages.
        decoder: how the names of the weights begin that only decoding needs.
        sizes: arguments that the shapes depend on, for messages.

    Raises:
        ValueError: names are missing (a decoder may be absent as a whole) or shapes differ.
    """
    expected = model.state_dict()
    has_decoder = any(name.startswith(decoder) for name in weights)
    wrong = [
        f'{name} is missing'
        if name not in weights
        else f'{name} has shape {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}'
        for name, tensor in expected.items()
        if (has_decoder or not name.startswith(decoder))
        and (name not in weights or weights[name].shape != tensor.shape)
    ]
    if wrong:
        raise ValueError(
            f'{source} does not fit {type(model).__name__}: {"; ".join(wrong[:4])} '
            f'({len(wrong)} of {len(expected)} parameters). Check {", ".join(sizes)}'
        )
    if dropped := [name for name in weights if name not in expected]:
        print_log(f'{source}: {len(dropped)} unused entries ({dropped[0]}, ...)', 'current')
    model.load_state_dict({k: v for k, v in weights.items() if k in expected}, strict=False)
    return has_decoder


def write_release(folder: str | os.PathLike, model: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Write a VQGAN as ``model.yaml`` and ``last.ckpt`` so that ``checkpoint=folder`` loads it.

    Each file appears complete or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = json.loads(json.dumps({name: sizes[name] for name in SIZES}))  # plain types for YAML
    content = {'model': {'target': model.target, 'params': params}}
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    (folder / 'model.yaml.part').write_text(yaml.safe_dump(content, sort_keys=False))
    torch.save({'state_dict': state}, folder / 'last.ckpt.part')
    for name in ('model.yaml', 'last.ckpt'):
        os.replace(folder / f'{name}.part', folder / name)


def _incomplete(folder: Path, lacks: str) -> FileNotFoundError:
    return FileNotFoundError(
        f'{folder} has no {lacks} (it holds {sorted(os.listdir(folder))[:10]}): a released '
        f'tokenizer is a folder with model.yaml and last.ckpt; {HOW_TO_GET_ONE}'
    )


def _find_weights(folder: Path) -> Path:
    for file in (folder / 'last.ckpt', folder / 'checkpoints' / 'last.ckpt'):
        if file.is_file():
            return file
    raise _incomplete(folder, 'last.ckpt or checkpoints/last.ckpt')


def _read_sizes(folder: Path, target: str) -> dict[str, Any]:
    """Read model.params of the first YAML file that has them (configs/ holds others too)."""
    files = [file for file in (folder / 'model.yaml',) if file.is_file()]
    files += sorted(folder.glob('configs/*.yaml'))
    if not files:
        raise _incomplete(folder, 'model.yaml or configs/*.yaml')
    for file in files:
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
        raise ValueError(f"{file} describes a {kind}: use type='{TOKENIZERS[kind]}' for it")
    return sizes


def _check_plain(values: Mapping[str, Any]) -> None:
    """TypeError for what no size is: aliases in YAML can nest lists beyond all memory."""
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
        raise ValueError(f'{listed} contradicts {folder}: leave these arguments out')
