"""Files and folders are read without running code from them; damage is an error."""

import argparse
import collections
import json
import os
import pickle
import subprocess
import sys
import types
from importlib import import_module

import numpy as np
import pytest
import torch
from hostile_files import Payload
from safetensors.torch import save_file

from mcbeit_mm.weights.reading import is_wrapped, read_checkpoint, state_dict_of

WEIGHTS = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.tensor([1, -2])}


def assert_weights(found):
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def payloads(sentinel):
    touch = f'touch {sentinel}'
    os_system = Payload(getattr, Payload(import_module, 'os'), 'system')
    run = f'open({str(sentinel)!r}, "w").close()'
    return {
        'os.system': Payload(os.system, touch),  # pickles as posix.system
        'builtins.eval': Payload(eval, f'__import__("os").system("{touch}")'),
        'builtins.exec': Payload(exec, run),
        'subprocess': Payload(subprocess.check_call, ['touch', str(sentinel)]),
        'getattr chain': Payload(list, Payload(map, os_system, [touch])),
        'open': Payload(open, str(sentinel), 'w'),
        'code in a state': argparse.Namespace(payload=Payload(eval, run)),
        'bound method': Payload(argparse.Namespace(a=Payload(exec, run)).__setattr__, 'b', 1),
    }


NAMES = list(payloads(''))


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('name', NAMES)
def test_hostile_file_runs_nothing(tmp_path, name, legacy):
    sentinel, path = tmp_path / 'sentinel', tmp_path / 'x.pth'
    content = {'model': WEIGHTS, 'payload': payloads(sentinel)[name]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert 'weights_only' not in str(error)  # no advice to read it unsafely
    else:
        assert not legacy
        assert repr(checkpoint['payload']).startswith('<unread')
        assert_weights(state_dict_of(checkpoint))
    assert not sentinel.exists()

    torch.load(path, weights_only=False)  # control: the payload works
    assert sentinel.exists()


def test_blocked_module_is_named(tmp_path):
    torch.save({'payload': Payload(os.system, 'true')}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'posix\.system|nt\.system'):
        read_checkpoint(tmp_path / 'x.pth')


def test_globals_registered_by_others_are_not_called(tmp_path):
    sentinel = tmp_path / 'sentinel'
    torch.save({'payload': Payload(open, str(sentinel), 'w')}, tmp_path / 'x.pth')
    with torch.serialization.safe_globals([(open, 'io.open'), (open, '_io.open'), print]):
        before = torch.serialization.get_safe_globals()
        payload = read_checkpoint(tmp_path / 'x.pth')['payload']
        assert set(torch.serialization.get_safe_globals()) == set(before)
    assert not sentinel.exists()
    assert repr(payload).startswith('<unread')


@pytest.fixture
def lightning(monkeypatch):
    """A Python module whose classes exist when saving and not when reading."""
    module = types.ModuleType('pytorch_lightning.fake')

    def define(name, base):
        cls = type(name, (base,), {'__module__': module.__name__, '__qualname__': name})
        setattr(module, name, cls)
        return cls

    for name, base in dict(Callback=object, AttributeDict=dict, Metrics=list).items():
        define(name, base)
    monkeypatch.setitem(sys.modules, 'pytorch_lightning', types.ModuleType('pytorch_lightning'))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_foreign_objects_do_not_prevent_reading(tmp_path, monkeypatch, lightning):
    callback = lightning.Callback()
    callback.best = torch.tensor(3.0)
    content = {
        'state_dict': collections.OrderedDict(WEIGHTS),
        'args': argparse.Namespace(lr=1e-3, nested=argparse.Namespace(a=[1])),
        'callbacks': {lightning.Callback: callback},
        'hyper_parameters': lightning.AttributeDict(lr=0.5, inner=lightning.AttributeDict(k=2)),
        'metrics': lightning.Metrics([1, 2]),
        'counts': collections.defaultdict(list, a=[1]),
        'queue': collections.deque([1, 2]),
        'loss': np.float64(0.25),
        'array': np.arange(3),
        'epoch': 7,
    }
    torch.save(content, tmp_path / 'x.ckpt')
    monkeypatch.delitem(sys.modules, lightning.__name__)
    checkpoint = read_checkpoint(tmp_path / 'x.ckpt')
    assert_weights(state_dict_of(checkpoint))
    assert checkpoint['epoch'] == 7
    assert checkpoint['hyper_parameters'] == {'lr': 0.5, 'inner': {'k': 2}}
    assert type(checkpoint['hyper_parameters']) is collections.OrderedDict
    assert checkpoint['metrics'] == checkpoint['queue'] == [1, 2]
    assert checkpoint['counts'] == {'a': [1]}
    for key in ('args', 'loss', 'array'):
        assert repr(checkpoint[key]).startswith('<unread')
    assert not isinstance(checkpoint['args'], argparse.Namespace)
    assert not vars(checkpoint['args'])


def test_tensors_of_unsupported_kind(tmp_path):
    rebuild = types.FunctionType((lambda: None).__code__, {}, '_rebuild_strange')
    rebuild.__module__, rebuild.__qualname__ = 'torch._utils', '_rebuild_strange'
    torch._utils._rebuild_strange = rebuild
    try:
        torch.save({'model': {'w': Payload(rebuild)}}, tmp_path / 'x.pth')
    finally:
        del torch._utils._rebuild_strange
    with pytest.raises(ValueError, match='_rebuild_strange'):
        read_checkpoint(tmp_path / 'x.pth')


def test_legacy_format(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'model': WEIGHTS, 'epoch': 1}, path, _use_new_zipfile_serialization=False)
    assert_weights(state_dict_of(read_checkpoint(path)))
    content = {'model': WEIGHTS, 'args': argparse.Namespace(lr=1.0)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r'argparse\.Namespace.*re-save'):
        read_checkpoint(path)


def test_safetensors(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file(WEIGHTS, path)
    assert_weights(state_dict_of(read_checkpoint(path)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match='copy it again'):
        read_checkpoint(path)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.9])
def test_truncated_file(tmp_path, share, legacy):
    path = tmp_path / 'x.pth'
    torch.save({'w': torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'x\.pth \({len(content):,} bytes\).*copy it again'):
        read_checkpoint(path)


def test_not_a_checkpoint(tmp_path):
    path = tmp_path / 'x.pth'
    path.write_text('<html>404</html>')
    with pytest.raises(ValueError, match='copy it again'):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({'w': 1}))
    with pytest.raises(ValueError, match='re-save'):
        read_checkpoint(path)
    torch.save(argparse.Namespace(a=1), path)
    with pytest.raises(ValueError, match=r'a argparse\.Namespace, expected a dict'):
        read_checkpoint(path)
    with pytest.raises(ValueError, match='folder'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='missing.pth'):
        read_checkpoint(tmp_path / 'missing.pth')


def test_deepspeed_folder(tmp_path):
    torch.save(
        {'module': WEIGHTS, 'args': argparse.Namespace(lr=1.0)},
        tmp_path / 'mp_rank_00_model_states.pt',
    )
    assert_weights(state_dict_of(read_checkpoint(tmp_path)))
    run = tmp_path / 'run'
    (run / 'checkpoint-3').mkdir(parents=True)
    (run / 'latest').write_text('checkpoint-3\n')
    states = tmp_path / 'mp_rank_00_model_states.pt'
    states.rename(run / 'checkpoint-3' / states.name)
    (run / 'checkpoint-3' / 'zero_pp_rank_0_mp_rank_00_optim_states.pt').touch()
    assert_weights(state_dict_of(read_checkpoint(run)))
    (run / 'latest').write_text('/etc/checkpoint-3')  # the tag is a name, never a path
    assert_weights(state_dict_of(read_checkpoint(run)))


@pytest.mark.parametrize(
    'names',
    [
        ['zero_pp_rank_0_mp_rank_00_model_states.pt', 'zero_pp_rank_1_mp_rank_00_model_states.pt'],
        ['mp_rank_00_model_states.pt', 'mp_rank_01_model_states.pt'],
    ],
)
def test_split_deepspeed_weights(tmp_path, names):
    for name in names:
        torch.save({'module': WEIGHTS}, tmp_path / name)
    with pytest.raises(ValueError, match=r'zero_to_fp32\.py'):
        read_checkpoint(tmp_path)


def test_hugging_face_folder(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'pytorch_model.bin')
    assert_weights(read_checkpoint(tmp_path))
    sharded = tmp_path / 'sharded'
    sharded.mkdir()
    weight_map = {}
    for i, (name, tensor) in enumerate(WEIGHTS.items()):
        weight_map[name] = f'model-{i}.safetensors'
        save_file({name: tensor}, sharded / weight_map[name])
    index = sharded / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': weight_map}))
    assert_weights(read_checkpoint(sharded))
    (sharded / 'model-1.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=r'model-1\.safetensors'):
        read_checkpoint(sharded)


@pytest.mark.parametrize('text', ['.', '', '..', '/', 'run/..'])
def test_last_checkpoint_that_names_no_entry_of_the_folder(tmp_path, text):
    (tmp_path / 'last_checkpoint').write_text(text)
    with pytest.raises(ValueError, match=r'^[^\n]*last_checkpoint names no checkpoint[^\n]*$'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('name', ['mp_rank_00_model_states.pt', 'pytorch_model.bin'])
def test_hostile_folder_runs_nothing(tmp_path, name):
    sentinel = tmp_path / 'sentinel'
    content = {'module': WEIGHTS, 'payload': payloads(sentinel)['builtins.exec']}
    torch.save(content, tmp_path / name)
    assert_weights(state_dict_of(read_checkpoint(tmp_path)))
    assert not sentinel.exists()


def test_is_wrapped():
    assert is_wrapped({'model': WEIGHTS}) and is_wrapped({'module': WEIGHTS, 'state_dict': {}})
    assert not is_wrapped(WEIGHTS) and not is_wrapped({'state_dict': WEIGHTS, 'model': WEIGHTS})
    assert not is_wrapped({'epoch': 1})


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: {'model': w, 'epoch': 3},
        lambda w: {'module': w},
        lambda w: {'state_dict': w, 'meta': {}},
        lambda w: {'state_dict': {'model': w}, 'model': None},
        lambda w: {'model': {f'module.{k}': v for k, v in w.items()}},
        lambda w: {'module.module.' + k: v for k, v in w.items()} | {'step': 1},
    ],
)
def test_state_dict_of_unwraps(wrap):
    assert_weights(state_dict_of(wrap(WEIGHTS)))


def test_state_dict_of_keeps_a_prefix_that_is_not_common():
    mixed = {'module.a': torch.zeros(1), 'b': torch.zeros(1)}
    assert state_dict_of(mixed).keys() == mixed.keys()


def test_state_dict_of_without_tensors():
    with pytest.raises(ValueError, match=r"\['epoch', 'model'\]"):
        state_dict_of({'epoch': 1, 'model': {}})


def test_work_dir_gives_its_newest_checkpoint(tmp_path):
    for epoch in (1, 2):
        torch.save(
            dict(state_dict=dict(a=torch.full((1,), epoch))), tmp_path / f'epoch_{epoch}.pth'
        )
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/epoch_2.pth')
    assert read_checkpoint(tmp_path)['state_dict']['a'] == 2
    (tmp_path / 'epoch_2.pth').unlink()
    with pytest.raises(FileNotFoundError, match='epoch_2.pth'):
        read_checkpoint(tmp_path)
