"""MMEngine's loaders execute nothing once mcbeit_mm is imported, and still resume."""

import argparse
import os

import numpy as np
import pytest
import torch
from hostile_files import Payload
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import _load_checkpoint
from safetensors.torch import save_file

import mcbeit_mm.weights.mmengine_loading  # noqa: F401
from mcbeit_mm.errors import SetupError


@pytest.mark.parametrize('place', ['state_dict', 'optimizer', 'meta'])
@pytest.mark.parametrize('kind', ['system', 'eval', 'getattr'])
def test_hostile_files_do_not_run(tmp_path, place, kind):
    mark = tmp_path / 'ran'
    code = f'open({str(mark)!r}, "w").close()'
    payload = {
        'system': Payload(os.system, f'touch {mark}'),
        'eval': Payload(eval, code),
        'getattr': Payload(getattr, HistoryBuffer, '__init__'),
    }[kind]
    torch.save({'state_dict': {}, 'meta': {}, place: {'x': payload}}, tmp_path / 'bad.pth')
    try:
        loaded = _load_checkpoint(str(tmp_path / 'bad.pth'), map_location='cpu')
    except SetupError as error:
        assert 'bad.pth' in str(error)
    else:
        assert type(loaded[place]['x']).__module__.startswith('mcbeit_mm')  # an inert stand-in
    assert not mark.exists()


def test_config_in_meta_is_removed(tmp_path):
    meta = dict(epoch=3, config='import os', cfg='model = None')
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'x.pth')
    loaded = _load_checkpoint(str(tmp_path / 'x.pth'), map_location='cpu')
    assert loaded['meta'] == dict(epoch=3, cfg='model = None')


def test_logs_and_numpy_numbers_survive(tmp_path):
    buffer = HistoryBuffer()
    for value in (1.0, 2.0, 6.0):
        buffer.update(value)
    hub = dict(log_scalars={'train/loss': buffer}, runtime_info={'lr': np.float64(0.5)})
    torch.save(dict(state_dict={'w': torch.ones(2)}, message_hub=hub), tmp_path / 'x.pth')
    loaded = _load_checkpoint(str(tmp_path / 'x.pth'), map_location='cpu')
    restored = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(restored, HistoryBuffer) and restored.mean() == 3.0
    assert loaded['message_hub']['runtime_info']['lr'] == 0.5
    assert torch.equal(loaded['state_dict']['w'], torch.ones(2))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        _load_checkpoint(str(tmp_path / 'none.pth'))
    torch.save(dict(state_dict={'w': torch.ones(1000)}), tmp_path / 'cut.pth')
    data = (tmp_path / 'cut.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(data[: len(data) // 2])
    with pytest.raises(SetupError, match='truncated'):
        _load_checkpoint(str(tmp_path / 'cut.pth'))


@pytest.mark.parametrize('wrapper', ['model', 'module'])
def test_wrapped_weights_become_the_state_dict(tmp_path, wrapper):
    content = {wrapper: {'w': torch.ones(2)}, 'args': argparse.Namespace(lr=1.0), 'epoch': 3}
    torch.save(content, tmp_path / 'x.pth')
    loaded = _load_checkpoint(str(tmp_path / 'x.pth'), map_location='cpu')
    assert torch.equal(loaded['state_dict']['w'], torch.ones(2)) and loaded['epoch'] == 3


def test_folders_and_safetensors(tmp_path):
    folder = tmp_path / 'deepspeed'
    folder.mkdir()
    torch.save({'module': {'w': torch.ones(2)}}, folder / 'mp_rank_00_model_states.pt')
    assert torch.equal(_load_checkpoint(str(folder))['state_dict']['w'], torch.ones(2))
    with pytest.raises(SetupError, match='folder'):
        _load_checkpoint(str(tmp_path))
    save_file({'w': torch.ones(2)}, tmp_path / 'x.safetensors')
    assert torch.equal(_load_checkpoint(str(tmp_path / 'x.safetensors'))['w'], torch.ones(2))


def test_init_cfg_of_any_module_takes_wrapped_weights(tmp_path):
    from mmengine.model import BaseModule

    class Plain(BaseModule):
        def __init__(self, init_cfg):
            super().__init__(init_cfg)
            self.w = torch.nn.Parameter(torch.zeros(2))

    content = {'model': {'w': torch.ones(2)}, 'args': argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / 'x.pth')
    module = Plain(dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')))
    module.init_weights()
    assert module.w.eq(1).all()


@pytest.mark.parametrize(
    'payload',
    [
        Payload(np.ndarray, (1,), 'O', b'pointer!'),
        Payload(np.dtype, 'O', False, True),
        Payload(np.dtype, 'V8', False, True),
    ],
)
def test_bytes_do_not_become_pointers(tmp_path, payload):
    """Reading such arrays crashes the process, so the loader must not build them."""
    torch.save({'state_dict': {'a': torch.ones(1)}, 'x': payload}, tmp_path / 'bad.pth')
    loaded = _load_checkpoint(str(tmp_path / 'bad.pth'), map_location='cpu')
    assert type(loaded['x']).__module__ == 'mcbeit_mm.fileio.inert_pickle'  # a stand-in
    assert loaded['state_dict']['a'] == 1


def test_logs_survive_a_second_resume(tmp_path):
    buffer = HistoryBuffer([1.5, 2.5], [1, 1])
    for name in ('first.pth', 'second.pth'):
        torch.save({'state_dict': {}, 'buffer': buffer}, tmp_path / name)
        buffer = _load_checkpoint(str(tmp_path / name), map_location='cpu')['buffer']
        assert buffer.mean() == 2 and list(buffer.data[0]) == [1.5, 2.5]
    buffer.update(5)
    assert buffer.current() == 5


def test_no_dict(tmp_path):
    torch.save([torch.ones(2)], tmp_path / 'x.pth')
    with pytest.raises(SetupError, match='holds a list, expected a dict'):
        _load_checkpoint(str(tmp_path / 'x.pth'))
