"""MMEngine's loading executes nothing once mcbeit_mm is imported, and still resumes."""

import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import _load_checkpoint

import mcbeit_mm.safe_loading  # noqa: F401
from mcbeit_mm.errors import SetupError


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


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


def test_a_config_in_the_meta_is_not_handed_to_mmengine(tmp_path):
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
    with pytest.raises(SetupError, match='cut short'):
        _load_checkpoint(str(tmp_path / 'cut.pth'))
