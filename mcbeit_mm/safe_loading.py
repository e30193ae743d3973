"""MMEngine's loader of local checkpoints, without its fall-back to running what they hold.

MMEngine (onedl 0.10.12) retries a refused file with full unpickling, and on resume executes
meta['config']. Importing this module replaces its loader for local files: `load_from`,
`--resume` and `init_cfg=dict(type='Pretrained', ...)` then execute nothing.
"""

import pickle
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from .checkpoint import is_wrapped, read_checkpoint, state_dict_of
from .errors import SetupError


def _buffer_method(owner: type, name: str) -> object:
    """Stand in for the getattr by which HistoryBuffer's pickles name their methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def _number_type(*args: object) -> np.dtype:
    """Stand in for numpy.dtype: types that hold objects turn bytes of a file into pointers."""
    dtype = np.dtype(*args)
    if dtype.kind not in 'biuf':
        raise pickle.UnpicklingError(f'numpy.dtype{args!r} is no type of numbers')
    return dtype


class _Array(np.ndarray):
    """Stands in for numpy.ndarray, which would take a buffer of pointers; saved as the original."""

    def __new__(cls, *args: object, **kwargs: object) -> '_Array':
        raise pickle.UnpicklingError('numpy.ndarray is called by the file')

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _allowed() -> list:
    """What MMEngine's own checkpoints hold beside tensors: logs and NumPy numbers."""
    core = getattr(np, '_core', None) or np.core
    numbers = {type(np.dtype(kind)) for kind in ('?', 'i4', 'i8', 'u4', 'u8', 'f4', 'f8')}
    functions = [core.multiarray.scalar, core.multiarray._reconstruct]
    aliases = [
        (function, f'numpy.{core_name}.multiarray.{function.__name__}')
        for function in functions
        for core_name in ('core', '_core')  # before and since NumPy 2
    ]
    aliases += [(_number_type, 'numpy.dtype'), (_Array, 'numpy.ndarray')]
    return [HistoryBuffer, *numbers, *aliases, (_buffer_method, 'builtins.getattr')]


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: str | None = None) -> dict:
    """Load a checkpoint; foreign objects come back inert, see `checkpoint.read_checkpoint`.

    It also reads folders and safetensors, and gives weights under `model` or `module`, as the
    authors' files have them, the key `state_dict`, which is all that MMEngine looks at.
    """
    path = Path(filename).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        checkpoint = _load(path, map_location)
    except ValueError as error:
        raise SetupError(str(error)) from error
    if is_wrapped(checkpoint):
        checkpoint['state_dict'] = state_dict_of(checkpoint)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # MMEngine would execute it
    return checkpoint


def _load(path: Path, map_location: str | None) -> dict:
    if path.is_dir() or path.suffix == '.safetensors':
        return read_checkpoint(path)
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return read_checkpoint(path)
