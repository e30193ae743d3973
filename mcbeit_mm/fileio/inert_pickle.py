"""Load files of torch.save without running their code: foreign objects become inert stubs."""

import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# These hold tensors: a stub in their place would lose weights silently.
TENSOR_GLOBALS = ('torch._utils.', 'torch._tensor.', 'torch.nested.', 'torch.distributed.tensor.')
MODULE_STATE = ('_parameters', '_buffers', '_modules')  # in the __dict__ of every nn.Module
TRANSIENT = '_non_persistent_buffers_set'
MAX_MODULES = 100_000  # shared modules can make the tree of a small file endless

_registry_lock = threading.Lock()


class _Inert:
    """Stand-in for a foreign class or function: accepts any call, keeps the state of a module."""

    module_state: dict[str, Any] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> '_Inert':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # a class with slots: (__dict__, slots)
            state = state[0]
        if isinstance(state, dict) and all(isinstance(state.get(k), dict) for k in MODULE_STATE):
            self.module_state = {name: state.get(name) for name in (*MODULE_STATE, TRANSIENT)}

    def __repr__(self) -> str:
        return f'<unread {type(self).__qualname__}>'


class _InertDict:
    """Stand-in for a foreign dict subclass: torch fills only plain dicts."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:
        return OrderedDict()


class _InertList:
    """Stand-in for a foreign list subclass: torch fills only plain lists."""

    def __new__(cls, *args: Any, **kwargs: Any) -> list:
        return []


def load_inert(path: Path) -> Any:
    """Load a file of `torch.save` to CPU, with stubs for foreign objects.

    A pickled module (``torch.save(module)``) is returned as its state dict.
    """
    content = _load(path)
    if isinstance(content, _Inert) and content.module_state:
        return dict(_named_tensors(content, count()))
    return content


def _load(path: Path) -> Any:
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


def _named_tensors(
    module: Any, number: Iterator[int], prefix: str = '', parents: tuple[Any, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and persistent buffers under the names of `nn.Module.state_dict`."""
    if next(number) >= MAX_MODULES:
        raise ValueError(f'the pickled module has more than {MAX_MODULES} submodules')
    if not isinstance(module, _Inert) or not module.module_state or module in parents:
        raise ValueError(
            f'{prefix[:-1]} in the pickled module is not a readable module ({_kind(module)})'
        )
    parameters, buffers, children = (module.module_state[name] for name in MODULE_STATE)
    transient = module.module_state[TRANSIENT] or ()
    buffers = {name: value for name, value in buffers.items() if name not in transient}
    for name, tensor in (parameters | buffers).items():
        if isinstance(tensor, Tensor):
            yield f'{prefix}{name}', tensor
        elif tensor is not None:  # None: bias=False, for example
            raise ValueError(
                f'{prefix}{name} in the pickled module is not a tensor ({_kind(tensor)})'
            )
    for name, child in children.items():
        if child is not None:
            yield from _named_tensors(child, number, f'{prefix}{name}.', (*parents, module))


def _kind(value: Any) -> str:
    """Return only the type's name: the repr of nested lists could exhaust memory."""
    return repr(value) if isinstance(value, _Inert) else type(value).__name__


def _foreign_globals(path: Path) -> list[str]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # not a zip file; torch.load will name the first foreign global
        return []
    for name in names:
        if name.startswith(TENSOR_GLOBALS):
            raise ValueError(f'it holds tensors of an unsupported kind ({name})')
    return names


@contextmanager
def _empty_registry() -> Iterator[None]:
    """Hide what other libraries registered as safe: real classes must not be called."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(registered)


def _stub(name: str, base: type) -> type:
    return type(name, (base,), {'__qualname__': name, '__module__': __name__})


def _turn_into_container(stubs: dict[str, type], message: str) -> bool:
    """Turn the stub that torch refused to fill into a dict or list; False if there is none."""
    for name, stub in stubs.items():
        if repr(stub) in message and issubclass(stub, _Inert):
            base = _InertDict if 'SETITEM' in message else _InertList
            stubs[name] = _stub(name, base)
            return True
    return False


def reason(error: Exception) -> str:
    """Describe an error without torch's advice to load the file unsafely."""
    message = str(error)
    if refused := re.search(r'GLOBAL (\S+)', message):
        return f'it refers to {refused[1]}, which is not data and is not executed'
    message = message.split('WeightsUnpickler error:')[-1].strip().split('\n')[0]
    return f'{type(error).__name__}: {message[:200]}'
