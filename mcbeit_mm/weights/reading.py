"""Read tensors from checkpoint files and folders without running code from them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..fileio.inert_pickle import load_inert, reason
from ..fileio.pins import check_pin, split_pin

WRAPPER_KEYS = ('state_dict', 'model', 'module', 'weights')
RESAVE = "re-save it as torch.save({'state_dict': model.state_dict()}, path) where it was made"
DEEPSPEED_FILE = 'mp_rank_00_model_states.pt'
HF_FILES = ('model.safetensors', 'pytorch_model.bin')


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint to CPU without executing anything in it.

    Objects other than tensors, numbers, strings and containers (``argparse.Namespace``, NumPy
    values, ...) become inert stubs, subclasses of ``dict`` and ``list`` plain containers. A pickled
    module (``torch.save(module)``) or ``.safetensors`` file gives a bare state dict.

    Args:
        path: a file of ``torch.save`` (before torch 1.6 only without foreign objects) or
            safetensors, a work dir (its newest checkpoint), or a folder of DeepSpeed (not ZeRO
            stage 3) or Hugging Face. Append ``#sha256=HEX`` to pin a file, see `fileio.pins`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown folder, another hash, damage, or content that only code can restore.
    """
    if '://' in str(path):
        raise ValueError(f'{path} is a URL: download the file and pass its path')
    name, pin = split_pin(path)
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f'no checkpoint at {path} (working directory: {Path.cwd()})')
    files = _files_of_folder(path) if path.is_dir() else [path]
    if pin and len(files) > 1:
        raise ValueError(
            f'{path} holds a checkpoint of {len(files)} files: only single files can be pinned'
        )
    checkpoint: dict = {}
    for file in files:
        checkpoint |= _read_file(check_pin(file, pin))
    return checkpoint


def state_dict_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Extract the tensors of a checkpoint by name; ValueError if there are none.

    Unwraps `WRAPPER_KEYS`, also nested, and removes a ``module.`` prefix common to all names.
    """
    inner: Mapping[str, Any] = checkpoint
    while key := next((k for k in WRAPPER_KEYS if _holds_tensors(inner.get(k))), None):
        inner = inner[key]
    tensors = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(
            f'No tensors in the checkpoint: expected a state dict, bare or under one of '
            f'{list(WRAPPER_KEYS)}, got the keys {[str(k) for k in checkpoint][:20]}'
        )
    while all(k.startswith('module.') for k in tensors):
        tensors = {k.removeprefix('module.'): v for k, v in tensors.items()}
    return tensors


def is_wrapped(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the tensors are under a key that MMEngine ignores, such as `model`."""
    keys = (key for key in WRAPPER_KEYS if _holds_tensors(checkpoint.get(key)))
    return next(keys, 'state_dict') != 'state_dict'


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        any(isinstance(v, Tensor) for v in value.values())
        or any(_holds_tensors(value.get(k)) for k in WRAPPER_KEYS)
    )


def _files_of_folder(folder: Path) -> list[Path]:
    """List the files of the checkpoint in a work dir, a DeepSpeed or a Hugging Face folder."""
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():  # MMEngine writes a path, whose folder may have been moved
        name = Path(pointer.read_text().strip()).name
        if name in ('', '..'):
            raise ValueError(f'{pointer} names no checkpoint: pass the checkpoint file itself')
        newest = folder / name
        return _files_of_folder(newest) if newest.is_dir() else [newest]
    latest = folder / 'latest'
    tagged = folder / Path(latest.read_text().strip()).name if latest.is_file() else folder
    states = sorted(tagged.glob('*mp_rank_*_model_states.pt'))
    if states:
        if [file.name for file in states] != [DEEPSPEED_FILE]:
            raise ValueError(
                f'{tagged} holds weights split over {len(states)} files ({states[0].name}, ...): '
                'merge them with the zero_to_fp32.py that DeepSpeed saved next to them'
            )
        return states
    for name in HF_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f'{name}.index.json'
        if index.is_file():
            shards = set(json.loads(index.read_text())['weight_map'].values())
            return [folder / Path(shard).name for shard in sorted(shards)]
    raise ValueError(
        f'{folder} is a folder without a checkpoint of DeepSpeed ({DEEPSPEED_FILE}) or '
        f'Hugging Face ({", ".join(HF_FILES)}): pass the checkpoint file itself'
    )


def _read_file(path: Path) -> dict:
    path.open('rb').close()  # without permission to read, raise that error
    try:
        checkpoint = (load_file if path.suffix == '.safetensors' else load_inert)(path)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the parsers raise almost anything
        raise ValueError(
            f'cannot read the checkpoint {path} ({path.stat().st_size:,} bytes): {reason(error)}. '
            f'If the file is damaged or truncated, download or copy it again; otherwise {RESAVE}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, expected a dict; {RESAVE}')
    return checkpoint
