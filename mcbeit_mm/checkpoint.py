"""Checkpoints: reading them without running code from the file."""

import hashlib
import os
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WRAPPER_KEYS = ('state_dict', 'model', 'module')
# Foreign objects become stubs, but these hold tensors: dropping them would lose weights silently.
TENSOR_GLOBALS = ('torch._utils.', 'torch._tensor.', 'torch.nested.', 'torch.distributed.tensor.')
RESAVE = "re-save it where it was made as torch.save({'state_dict': model.state_dict()}, path)"

_registry_lock = threading.Lock()


class _Inert:
    """Stand-in for a foreign class or function: takes anything, keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> '_Inert':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f'<unread {type(self).__qualname__}>'


class _InertDict:
    """Stand-in for a foreign subclass of dict: torch fills plain dictionaries only."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:
        return OrderedDict()


class _InertList:
    """Stand-in for a foreign subclass of list: torch fills plain lists only."""

    def __new__(cls, *args: Any, **kwargs: Any) -> list:
        return []


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint to CPU without executing anything the file says.

    Tensors, numbers, strings and containers come back as they were saved. Objects of other
    classes (``argparse.Namespace``, Lightning callbacks, NumPy values, ...) come back as
    inert stand-ins, subclasses of ``dict`` and ``list`` as plain ones.

    Args:
        path: a file of ``torch.save`` (zip format, or the one before torch 1.6, then without
            foreign objects) or a ``.safetensors`` file, which gives the bare state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, a damaged file, or content that only running code could restore.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder; give the checkpoint file inside it')
    if not path.exists():
        raise FileNotFoundError(f'No checkpoint at {path} (working directory: {Path.cwd()})')
    path.open('rb').close()  # a file that may not be read is not a damaged one
    read = _read_safetensors if path.suffix == '.safetensors' else _read_torch
    try:
        checkpoint = read(path)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # damaged bytes make the parsers raise almost anything
        raise ValueError(
            f'Cannot read the checkpoint {path} ({path.stat().st_size:,} bytes): {_reason(error)}. '
            f'If the file is damaged or cut short, download or copy it again; otherwise {RESAVE}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds {checkpoint!r:.200}, expected a dict; {RESAVE}')
    return checkpoint


def state_dict_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name.

    Wrappers (``state_dict``, ``model``, ``module``, also nested) and a ``module.`` prefix
    common to all names are removed; entries that are not tensors are left out.

    Raises:
        ValueError: there are no tensors.
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


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        any(isinstance(v, Tensor) for v in value.values())
        or any(_holds_tensors(value.get(k)) for k in WRAPPER_KEYS)
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path} needs: pip install safetensors') from error
    return load_file(path)


def _read_torch(path: Path) -> Any:
    with _registry_lock, _empty_registry():
        stubs = {name: _stub(name, _Inert) for name in _foreign_globals(path)}
        while True:
            allowed = [(stub, name) for name, stub in stubs.items()]
            try:
                with torch.serialization.safe_globals(allowed):
                    return torch.load(path, map_location='cpu', weights_only=True)
            except pickle.UnpicklingError as error:
                if not _turn_into_container(stubs, str(error)):
                    raise


def _foreign_globals(path: Path) -> list[str]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # not a zip file; torch.load names the first foreign global it meets
        return []
    for name in names:
        if name.startswith(TENSOR_GLOBALS):
            raise ValueError(f'it holds tensors of a kind that is not read here ({name})')
    return names


@contextmanager
def _empty_registry() -> Iterator[None]:
    """Forget what other libraries registered as safe: real classes must not be called."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(registered)


def _stub(name: str, base: type) -> type:
    return type(name, (base,), {'__qualname__': name, '__module__': __name__})


def _turn_into_container(stubs: dict[str, type], message: str) -> bool:
    """Replace the stub that torch refused to fill by a dict or list; False if there is none."""
    for name, stub in stubs.items():
        if repr(stub) in message and issubclass(stub, _Inert):
            base = _InertDict if 'SETITEM' in message else _InertList
            stubs[name] = _stub(name, base)
            return True
    return False


def _reason(error: Exception) -> str:
    """Say what is wrong without torch's advice to load the file unsafely."""
    message = str(error)
    if refused := re.search(r'GLOBAL (\S+)', message):
        return f'it refers to {refused[1]}, which is not data and will not be run'
    message = message.split('WeightsUnpickler error:')[-1].strip().split('\n')[0]
    return f'{type(error).__name__}: {message[:200]}'
