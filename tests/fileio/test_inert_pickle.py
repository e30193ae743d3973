"""Pickled modules are read without their classes."""

import functools
import os
import sys
import types

import pytest
import torch
from hostile_files import Payload
from torch import nn

from mcbeit_mm.weights.reading import read_checkpoint


@pytest.fixture
def foreign(monkeypatch):
    """A Python module of classes that `foreign.remove()` removes before reading."""
    module = types.ModuleType('foreign')

    def define(name, **attributes):
        attributes |= {'__module__': 'foreign', '__qualname__': name}
        setattr(module, name, type(name, (nn.Module,), attributes))

    define('Net')
    define('Slotted', __slots__=('width',))
    define('Odd', __getstate__=lambda self: ('not', 'a', 'dict'))
    monkeypatch.setitem(sys.modules, 'foreign', module)
    module.remove = lambda: monkeypatch.delitem(sys.modules, 'foreign')
    return module


def network(foreign):
    net = foreign.Net()
    net.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    net.shared = net.body[0]
    net.slotted = foreign.Slotted()
    net.slotted.width = 5
    net.slotted.w = nn.Parameter(torch.rand(2).half())
    net.register_buffer('table', torch.arange(4))
    net.register_buffer('scratch', torch.zeros(2), persistent=False)
    net.register_parameter('none', None)
    net.sizes, net.device = (1, [2, 3]), torch.device('cpu')
    net.make = functools.partial(nn.Conv2d, kernel_size=3)
    return net


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_modules_are_read_as_state_dicts(tmp_path, foreign):
    torch.save(network(foreign), tmp_path / 'net.pkl')
    expected = torch.load(tmp_path / 'net.pkl', weights_only=False).state_dict()
    foreign.remove()
    found = read_checkpoint(tmp_path / 'net.pkl')
    assert_same(found, expected)
    assert type(found) is dict and 'slotted.w' in found and 'scratch' not in found


def test_existing_classes_are_not_called(tmp_path, foreign, monkeypatch):
    torch.save(network(foreign), tmp_path / 'net.pkl')
    called = []
    for cls in (foreign.Net, foreign.Slotted, nn.Sequential, nn.Conv2d):
        monkeypatch.setattr(cls, '__setstate__', lambda self, state: called.append(self))
    foreign.Net.__new__ = lambda cls, *args: called.append(cls)
    with torch.serialization.safe_globals([foreign.Net, nn.Conv2d]):
        assert 'body.0.weight' in read_checkpoint(tmp_path / 'net.pkl')
    assert not called


@pytest.mark.parametrize('place', ['attribute', 'parameter', 'buffer', 'child', 'file'])
@pytest.mark.parametrize('function', ['os.system', 'eval'])
def test_hostile_modules_run_nothing(tmp_path, foreign, place, function):
    mark, path = tmp_path / 'ran', tmp_path / 'net.pkl'
    payload = {
        'os.system': Payload(os.system, f'touch {mark}'),
        'eval': Payload(eval, f'open({str(mark)!r}, "w").close()'),
    }[function]
    net = network(foreign)
    states = dict(attribute=net.__dict__, parameter=net._parameters, buffer=net._buffers)
    (states | dict(child=net._modules, file={}))[place]['payload'] = payload
    torch.save(payload if place == 'file' else net, path)
    if (place, function) == ('attribute', 'eval'):  # only weights are read
        assert 'body.0.weight' in read_checkpoint(path)
    else:
        with pytest.raises(ValueError, match='net.pkl'):
            read_checkpoint(path)
    assert not mark.exists()

    torch.load(path, weights_only=False)  # control: the payload works
    assert mark.exists()


def test_errors_name_what_cannot_be_read(tmp_path, foreign):
    def saved(**children):
        net = foreign.Net()
        for name, child in children.items():
            net._modules[name] = child
        torch.save(net, tmp_path / 'net.pkl')
        return tmp_path / 'net.pkl'

    with pytest.raises(ValueError, match=r'net\.pkl.*odd in the pickled .*unread foreign\.Odd'):
        read_checkpoint(saved(odd=foreign.Odd()))
    loop = nn.Sequential(nn.ReLU())
    loop._modules['again'] = loop
    with pytest.raises(ValueError, match=r'loop\.again in the pickled module'):
        read_checkpoint(saved(loop=loop))
    odd = nn.ReLU()
    odd._parameters['w'] = 'text'
    with pytest.raises(ValueError, match=r'a\.w in the pickled module is not a tensor \(str\)'):
        read_checkpoint(saved(a=odd))


def test_endlessly_shared_modules(tmp_path):
    """A small file whose module tree has 2 ** 40 leaves gives an error."""
    net = nn.ReLU()
    for _ in range(40):
        parent = nn.Module()
        parent._modules |= dict(a=net, b=net)
        net = parent
    torch.save(net, tmp_path / 'net.pkl')
    with pytest.raises(ValueError, match='more than 100000 submodules'):
        read_checkpoint(tmp_path / 'net.pkl')


def test_messages_do_not_print_nested_lists(tmp_path):
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    net = nn.ReLU()
    net._parameters['w'] = nested
    torch.save(nn.Sequential(net), tmp_path / 'net.pkl')
    with pytest.raises(ValueError, match=r'0\.w in the pickled module is not a tensor \(list\)'):
        read_checkpoint(tmp_path / 'net.pkl')


def test_modules_in_the_format_before_torch_1_6(tmp_path, foreign):
    path = tmp_path / 'net.pkl'
    torch.save(network(foreign), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r'net\.pkl.*refers to foreign\.Net.*re-save it'):
        read_checkpoint(path)


@pytest.mark.parametrize('share', [0.3, 0.9])
def test_truncated_modules(tmp_path, foreign, share):
    path = tmp_path / 'net.pkl'
    torch.save(network(foreign), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r'net\.pkl.*copy it again'):
        read_checkpoint(path)
