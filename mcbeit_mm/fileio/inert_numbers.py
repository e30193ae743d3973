"""Stand-ins that rebuild NumPy numbers and MMEngine's logs from a pickle, and nothing else.

NumPy's own functions trust the file: a dtype may say that its bytes are pointers, or that it has
fields far outside of the array.
"""

import pickle
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

KINDS = 'biufcSU'  # truth values, integers, floating point, complex, text of fixed size


class NumberType:
    """Stands in for `numpy.dtype`: a type of numbers or text, of whose state only the byte order
    is taken from the file; saved as the original.
    """

    def __init__(self, *args: Any):
        self.dtype = np.dtype(*args)
        if self.dtype.kind not in KINDS or self.dtype.subdtype:
            raise pickle.UnpicklingError(f'numpy.dtype{args!r} is no type of numbers')

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in tuple('<>=|'):
            raise pickle.UnpicklingError(f'a byte order of {state[1]!r}')
        self.dtype = self.dtype.newbyteorder(state[1])

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class Array(np.ndarray):
    """Stands in for `numpy.ndarray`, which takes a buffer of pointers; saved as the original."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Array':  # noqa: D102
        raise pickle.UnpicklingError('numpy.ndarray is called by the file')

    def __setstate__(self, state: tuple) -> None:
        version, shape, number_type, is_fortran, data = state
        if not isinstance(number_type, NumberType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError('an array of objects')
        super().__setstate__((version, shape, number_type.dtype, bool(is_fortran), data))

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _empty_array(kind: type, shape: tuple, code: bytes) -> Array:
    """Stand in for numpy's _reconstruct, which is followed by `__setstate__`."""
    return np.ndarray.__new__(Array, (0,))


def _array_of(data: bytes, number_type: NumberType, shape: tuple, order: str) -> np.ndarray:
    """Stand in for numpy's _frombuffer, the form of protocol 5."""
    flat = np.frombuffer(data, number_type.dtype)
    return flat.reshape(shape, order='F' if order == 'F' else 'C')


def _scalar(number_type: NumberType, data: bytes) -> np.generic:
    """Stand in for numpy's scalar."""
    if not isinstance(number_type, NumberType):
        raise pickle.UnpicklingError('a scalar that is no number')
    return np.frombuffer(data, number_type.dtype, 1)[0]


def _buffer_method(owner: type, name: str) -> object:
    """Stand in for the getattr by which HistoryBuffer's pickles name their methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


NUMBERS = {'numpy.dtype': NumberType, 'numpy.ndarray': Array}
for _core in ('numpy.core', 'numpy._core'):  # before and since NumPy 2
    NUMBERS[f'{_core}.multiarray.scalar'] = _scalar
    NUMBERS[f'{_core}.multiarray._reconstruct'] = _empty_array
    NUMBERS[f'{_core}.numeric._frombuffer'] = _array_of
LOGS = {
    f'{HistoryBuffer.__module__}.{HistoryBuffer.__name__}': HistoryBuffer,
    'builtins.getattr': _buffer_method,
}
