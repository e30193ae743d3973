"""Replace MMEngine's file loaders with ones that execute nothing.

MMEngine (onedl 0.10.12) retries a refused checkpoint with full unpickling, executes
meta['config'] on resume, and reads annotation files (.pkl, .yaml) with loaders that call whatever
the file names. Importing this module makes `load_from`, `--resume`,
`init_cfg=dict(type='Pretrained', ...)`, `ann_file` and `proposal_file` safe.
"""

import hashlib
import os
import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlparse

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
import yaml
from mmengine.fileio.handlers import PickleHandler, YamlHandler, register_handler
from mmengine.runner.checkpoint import CheckpointLoader

from ..errors import SetupError
from ..fileio.inert_numbers import LOGS, NUMBERS
from ..fileio.pins import check_pin, split_pin
from .reading import is_wrapped, read_checkpoint, state_dict_of

DATA = NUMBERS | {
    'collections.OrderedDict': OrderedDict,
    'builtins.set': set,
    '__builtin__.set': set,  # protocols up to 2
    '_codecs.encode': lambda text, encoding: text.encode('latin1'),  # bytes, protocols up to 2
}


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: str | None = None) -> dict:
    """Load a checkpoint with inert stubs for foreign objects, see `reading.read_checkpoint`.

    Also reads folders, safetensors and pinned files (`PATH#sha256=HEX`), and copies weights under
    `model` or `module`, as in the authors' files, to MMEngine's `state_dict`.
    """
    try:
        name, pin = split_pin(filename)
        path = Path(name).expanduser()
        if path.is_file() and path.suffix != '.safetensors':
            check_pin(path, pin)
            with suppress(pickle.UnpicklingError, RuntimeError, EOFError):
                return _for_mmengine(_load_numbers(path, map_location))
        return _for_mmengine(read_checkpoint(f'{path}#sha256={pin}' if pin else path))
    except ValueError as error:
        raise SetupError(str(error)) from error


def load_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: str | None = None,
    progress: bool = True,
) -> dict:
    """Download a file unless cached, and load it; replaces MMEngine's `load_url`.

    `load_from_http` calls it, on rank 0 first, also for names such as `torchvision://resnet50`.
    A pin (`URL#sha256=HEX`) is checked after the download and on every load.
    """
    address, pin = split_pin(url)
    folder = Path(model_dir) if model_dir else Path(torch.hub.get_dir()) / 'checkpoints'
    # The digest distinguishes files of the same name from different hosts.
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    name = f'{digest}-{PurePosixPath(urlparse(address).path).name or "checkpoint"}'
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).is_file():
        try:
            torch.hub.download_url_to_file(address, str(folder / name), pin, progress)
        except (OSError, RuntimeError) as error:  # unreachable, or wrong hash
            raise SetupError(
                f'{address}: {error}; download the file by other means and pass its path'
            ) from error
    return load_from_local(f'{folder / name}#sha256={pin}' if pin else str(folder / name))


def load_open_file(
    file: str | os.PathLike | IO[bytes],
    map_location: str | None = None,
    weights_only: bool | None = True,
) -> dict:
    """Load a path or an open file from an object store; replaces MMEngine's `_safe_torch_load`.

    Always weights only, whatever the caller requests.
    """
    if isinstance(file, str | os.PathLike):
        return load_from_local(os.fspath(file), map_location)
    try:
        return _for_mmengine(_load_numbers(file, map_location))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise SetupError(
            'the checkpoint in the object store holds more than tensors and numbers, or is '
            'damaged: download it and pass the file'
        ) from error


mmengine_checkpoint.load_url = load_from_url
mmengine_checkpoint._safe_torch_load = load_open_file


class _DataUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in DATA:
            raise pickle.UnpicklingError(f'it refers to {module}.{name}, which is not data')
        return DATA[f'{module}.{name}']


@register_handler(['pkl', 'pickle'])
class DataPickleHandler(PickleHandler):
    """Reads `ann_file` and `proposal_file` pickles of plain data and refuses all others."""

    def load_from_fileobj(self, file: IO[bytes], **kwargs: Any) -> Any:
        """Read plain data; SetupError for objects of other classes."""
        try:
            return _DataUnpickler(file, **kwargs).load()
        except Exception as error:  # damaged bytes make the unpickler raise almost anything
            raise SetupError(
                f'refused a pickle file (ann_file, proposal_file, ...): {error}. Save it as JSON, '
                'or as a pickle of only dicts, lists, numbers, strings and arrays'
            ) from error


@register_handler(['yaml', 'yml'])
class DataYamlHandler(YamlHandler):
    """Reads YAML and refuses tags that call Python."""

    def load_from_fileobj(self, file: IO[str], **kwargs: Any) -> Any:
        """Read plain data; yaml.YAMLError otherwise."""
        return yaml.safe_load(file)


def _load_numbers(file: Path | IO[bytes], map_location: str | None) -> Any:
    """Load tensors, numbers and logs; UnpicklingError for objects of other classes."""
    known = [(stand_in, name) for name, stand_in in (NUMBERS | LOGS).items()]
    with torch.serialization.safe_globals(known):
        return torch.load(file, map_location=map_location, weights_only=True)


def _for_mmengine(checkpoint: Any) -> dict:
    if not isinstance(checkpoint, dict):
        raise SetupError(f'the checkpoint holds a {type(checkpoint).__name__}, expected a dict')
    if is_wrapped(checkpoint):
        checkpoint['state_dict'] = state_dict_of(checkpoint)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # MMEngine would execute it
    return checkpoint
