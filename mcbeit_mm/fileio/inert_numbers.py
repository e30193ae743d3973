"""Stand-ins that rebuild NumPy numbers and MMEngine's logs from a pickle, and nothing else.

NumPy's own functions trust the file: a pickled dtype may declare its bytes to be pointers, or a
field far outside the array.
"""

import pickle
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

KINDS = 'biufcSU'  # bool, int, uint, float, complex, fixed-size bytes and text


class NumberType:
    """Stand-in for `numpy.dtype` that takes only the byte order from the pickled state.

    Pickles as the original, like `Array`.
    """

    def __init__(self, *args: Any):
        self.dtype = np.dtype(*args)
        if self.dtype.kind not in KINDS or self.dtype.subdtype:
            raise pickle.UnpicklingError(f'numpy.dtype{args!r} is not numeric')

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in tuple('<>=|'):
            raise pickle.UnpicklingError(f'invalid byte order {state[1]!r}')
        self.dtype = self.dtype.newbyteorder(state[1])

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class Array(np.ndarray):
    """Stand-in for `numpy.ndarray`, whose constructor accepts a buffer of pointers."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Array':  # noqa: D102
        raise pickle.UnpicklingError('the file calls numpy.ndarray')

    def __setstate__(self, state: tuple) -> None:
        version, shape, number_type, is_fortran, data = state
        if not isinstance(number_type, NumberType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError('the file holds an array of objects')
        super().__setstate__((version, shape, number_type.dtype, bool(is_fortran), data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _empty_array(kind: type, shape: tuple, code: bytes) -> Array:
    """Stand-in for NumPy's `_reconstruct`; `__setstate__` follows."""
    return np.ndarray.__new__(Array, (0,))


def _array_of(data: bytes, number_type: NumberType, shape: tuple, order: str) -> np.ndarray:
    """Stand-in for NumPy's `_frombuffer`, which protocol 5 uses."""
    flat = np.frombuffer(data, number_type.dtype)
    return flat.reshape(shape, order='F' if order == 'F' else 'C')


def _scalar(number_type: NumberType, data: bytes) -> np.generic:
    """Stand-in for NumPy's `scalar`."""
    if not isinstance(number_type, NumberType):
        raise pickle.UnpicklingError('the file holds a scalar that is not a number')
    return np.frombuffer(data, number_type.dtype, 1)[0]


def _buffer_method(owner: type, name: str) -> object:
    """Stand-in for the `getattr` with which pickles of HistoryBuffer refer to its methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'the file calls getattr({owner!r}, {name!r})')
    return getattr(owner, name)


NUMBERS = {'numpy.dtype': NumberType, 'numpy.ndarray': Array}
for _core in ('numpy.core', 'numpy._core'):  # NumPy 1, NumPy 2
    NUMBERS[f'{_core}.multiarray.scalar'] = _scalar
    NUMBERS[f'{_core}.multiarray._reconstruct'] = _empty_array
    NUMBERS[f'{_core}.numeric._frombuffer'] = _array_of
LOGS = {
    f'{HistoryBuffer.__module__}.{HistoryBuffer.__name__}': HistoryBuffer,
    'builtins.getattr': _buffer_method,
}
