"""Reading files of torch.save without running code from them: foreign objects become stubs."""

import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Foreign objects become stubs, but these hold tensors: dropping them would lose weights silently.
TENSOR_GLOBALS = ('torch._utils.', 'torch._tensor.', 'torch.nested.', 'torch.distributed.tensor.')

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


def load_inert(path: Path) -> Any:
    """Load a file of `torch.save` to CPU; objects of foreign classes come back as stand-ins."""
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


def reason(error: Exception) -> str:
    """Say what is wrong without torch's advice to load the file unsafely."""
    message = str(error)
    if refused := re.search(r'GLOBAL (\S+)', message):
        return f'it refers to {refused[1]}, which is not data and will not be run'
    message = message.split('WeightsUnpickler error:')[-1].strip().split('\n')[0]
    return f'{type(error).__name__}: {message[:200]}'
