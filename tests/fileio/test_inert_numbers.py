"""NumPy values survive loading, without pointers or offsets from the file."""

import pickle

import numpy as np
import pytest
import torch
from hostile_files import Payload
from mmengine.dataset import BaseDataset
from mmengine.runner.checkpoint import _load_checkpoint

import mcbeit_mm  # noqa: F401
from mcbeit_mm.errors import SetupError
from mcbeit_mm.fileio.inert_numbers import Array, NumberType


@pytest.mark.parametrize('kind', ['?', 'u1', 'i8', 'f2', '<f4', '>f8', 'c8', 'S3', 'U5', '>U2'])
@pytest.mark.parametrize('order', 'CF')
def test_arrays_and_scalars_survive(tmp_path, kind, order):
    array = np.arange(6).reshape(2, 3).astype(kind, order=order)
    content = dict(state_dict={}, x=array, y=array[1, 2], z=array.dtype)
    for number in range(3):  # also after saving again
        torch.save(content, tmp_path / f'{number}.pth')
        content = _load_checkpoint(str(tmp_path / f'{number}.pth'), map_location='cpu')
        assert np.array_equal(content['x'], array) and content['y'] == array[1, 2]
        assert content['x'].dtype.kind == array.dtype.kind
        assert isinstance(content['z'], NumberType) and content['z'].dtype == array.dtype
    saved = torch.load(tmp_path / '2.pth', weights_only=False)
    assert type(saved['x']) is np.ndarray and saved['z'] == array.dtype


def far_field():
    """An 8-byte dtype with a field a million bytes away, which NumPy would read."""
    state = (3, '<', None, ('a',), {'a': (np.dtype('f8'), 10**6)}, -1, -1, 0)
    return Payload(np.dtype, 'f8', False, True, state=state)


def pointers():
    """A numeric dtype that claims to hold objects."""
    return Payload(np.dtype, 'f8', False, True, state=(3, '<', None, None, None, -1, -1, 63))


def array_of(kind, data=b'12345678'):
    return Payload(
        np.zeros(1).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, (1,), kind, False, data)
    )


@pytest.mark.parametrize('kind', [far_field, pointers])
def test_only_the_byte_order_of_a_dtype_is_used(tmp_path, kind):
    free = pickle.loads(pickle.dumps(kind()))
    assert free.fields or free.hasobject  # NumPy itself believes it
    torch.save(dict(state_dict={}, x=array_of(kind())), tmp_path / 'x.pth')
    (tmp_path / 'x.pkl').write_bytes(
        pickle.dumps(dict(metainfo={}, data_list=[dict(img_path='', x=array_of(kind()))]))
    )
    for loaded in (
        _load_checkpoint(str(tmp_path / 'x.pth'))['x'],
        BaseDataset(ann_file=str(tmp_path / 'x.pkl'), serialize_data=False).get_data_info(0)['x'],
    ):
        assert loaded.dtype == np.dtype('f8') and not loaded.dtype.fields
        assert not loaded.dtype.hasobject and loaded.tobytes() == b'12345678'


@pytest.mark.parametrize(
    'content',
    [
        np.dtype('O'),
        np.dtype('V8'),
        np.dtype([('a', 'f8')]),
        np.dtype(('f8', (2,))),
        np.array([1, 'x'], dtype=object),
        array_of(Payload(np.dtype, 'f8', False, True, state=(3, '?', None, None, None, -1, -1, 0))),
        array_of(np.dtype('f8'), [1, 2]),
        array_of(np.dtype('f8'), b'123'),
        Payload(np.zeros(1)[0].__reduce__()[0], 3, b'12345678'),
    ],
    ids=['object', 'bytes', 'record', 'pair', 'objects', 'state', 'shape', 'short', 'scalar'],
)
def test_other_types_are_refused(tmp_path, content):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(dict(metainfo={}, data_list=[content])))
    with pytest.raises(SetupError, match='refused a pickle file'):
        BaseDataset(ann_file=str(tmp_path / 'x.pkl'))


def test_arrays_are_not_built_by_a_call():
    with pytest.raises(pickle.UnpicklingError, match='the file calls numpy.ndarray'):
        Array((1,), 'O', b'pointer!')
