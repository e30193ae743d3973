"""DALL-E's tokenizer with files like OpenAI's: pickled modules of a missing package."""

import functools
import os
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from golden_tokenizers import images_of
from torch import nn

from mcbeit_mm.tokenizers.dalle import DALLETokenizer


@pytest.fixture
def dalle(golden):
    return golden('tokenizer_dalle')


@pytest.fixture
def sizes(dalle):
    return {key: dalle.sizes[key] for key in ('n_hid', 'n_blk_per_group', 'vocab_size')}


@pytest.fixture
def package(monkeypatch):
    """Stand-in for OpenAI's package while files are saved; `remove()` uninstalls it."""
    names = {'Encoder': 'encoder', 'EncoderBlock': 'encoder', 'Decoder': 'decoder'}
    names |= {'DecoderBlock': 'decoder', 'Conv2d': 'utils'}
    modules = {f'dall_e.{name}': types.ModuleType(f'dall_e.{name}') for name in names.values()}
    modules['dall_e'] = types.ModuleType('dall_e')
    classes = {}
    for name, file in names.items():
        space = {'__module__': f'dall_e.{file}', '__qualname__': name}
        if name == 'Conv2d':
            space['__slots__'] = ('kw', 'use_float16')  # its state is then a tuple
        classes[name] = type(name, (nn.Module,), space)
        setattr(modules[f'dall_e.{file}'], name, classes[name])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def remove():
        for name in modules:
            monkeypatch.delitem(sys.modules, name)

    return types.SimpleNamespace(**classes, remove=remove)


def pickled_module(package, state, kind, name=''):
    """Build a module tree with the weights of `state` and the attributes of attrs classes."""
    if 'w' in state:
        module = package.Conv2d()
        module.kw, module.use_float16 = state['w'].shape[-1], True
        module.w, module.b = (nn.Parameter(state[key], requires_grad=False) for key in 'wb')
        return module
    classes = {'': kind, 'block': f'{kind}Block'}
    cls = classes.get(name.partition('_')[0])
    module = getattr(package, cls)() if cls else nn.Sequential()
    if cls:
        module.device, module.n_in, module.shape = torch.device('cpu'), 3, (1, 2)
        module.make_conv = functools.partial(package.Conv2d, requires_grad=False)
    for child in dict.fromkeys(key.partition('.')[0] for key in state):
        inner = {k.removeprefix(f'{child}.'): v for k, v in state.items() if k.startswith(child)}
        module.add_module(f'relu_{child}', nn.ReLU())
        module.add_module(child, pickled_module(package, inner, kind, child))
    return module


@pytest.fixture
def released(tmp_path, dalle, sizes, package):
    """Folder with encoder.pkl and decoder.pkl, the latter with the weights of `.decoder`."""
    torch.manual_seed(2)
    decoder = DALLETokenizer(**sizes).decoder
    for kind, state in {'Encoder': dalle.group('state'), 'Decoder': decoder.state_dict()}.items():
        torch.save(pickled_module(package, state, kind), tmp_path / f'{kind.lower()}.pkl')
    package.remove()
    return types.SimpleNamespace(folder=tmp_path, decoder=decoder)


def test_golden_encoder(dalle, sizes, released):
    tokenizer = DALLETokenizer(**sizes, checkpoint=released.folder)
    logits = tokenizer(images_of(dalle))
    assert relative_error(logits, dalle['logits']) <= 1e-5
    assert torch.equal(logits.argmax(dim=1), dalle['indices'])
    assert relative_error(tokenizer.normalize(dalle['image01']), dalle['x']) <= 1e-6
    assert relative_error(tokenizer.denormalize(dalle['x']), dalle['image01']) <= 1e-6
    assert tokenizer.identity['checkpoint'] == str(released.folder / 'encoder.pkl')


def slow_decode(z, state, blocks_per_group):
    """Reference of OpenAI's decoder: one-hot tokens (B, V, h, w) -> (B, 6, 8h, 8w)."""

    def conv(x, name):
        weight = state[f'{name}.w']
        return F.conv2d(x, weight, state[f'{name}.b'], padding=(weight.shape[-1] - 1) // 2)

    x = conv(z, 'blocks.input')
    for group in range(1, 5):
        for block in range(1, blocks_per_group + 1):
            name = f'blocks.group_{group}.block_{block}'
            h = x
            for i, kernel in enumerate((1, 3, 3, 3), 1):
                assert state[f'{name}.res_path.conv_{i}.w'].shape[-1] == kernel
                h = conv(h.relu(), f'{name}.res_path.conv_{i}')
            shortcut = conv(x, f'{name}.id_path') if f'{name}.id_path.w' in state else x
            x = shortcut + h / (4 * blocks_per_group) ** 2
        if group < 4:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return conv(x.relu(), 'blocks.output.conv')


@pytest.mark.parametrize('blocks', [1, 2])
def test_decoder(blocks):
    tokenizer = DALLETokenizer(n_hid=8, n_blk_per_group=blocks, vocab_size=12)
    for name, parameter in tokenizer.named_parameters():
        if name.endswith('.b'):
            nn.init.normal_(parameter)
    ids = torch.randint(12, (2, 2, 3))
    one_hot = F.one_hot(ids, 12).permute(0, 3, 1, 2).float()
    found = slow_decode(one_hot, tokenizer.decoder.state_dict(), blocks)
    expected = ((found[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    assert expected.shape == (2, 3, 16, 24) and expected.std() > 0.05
    assert relative_error(tokenizer.decode(ids), expected) <= 1e-5
    assert relative_error(tokenizer.decode(one_hot), expected) <= 1e-5


def test_full_size_parameters():
    with torch.device('meta'):
        model = DALLETokenizer()
    counts = {n: sum(p.numel() for p in c.parameters()) for n, c in model.named_children()}
    assert counts == {'encoder': 53_786_240, 'decoder': 43_829_766}
    assert (model.vocab_size, model.stride) == (8192, 8)
    assert DALLETokenizer.geometry() == dict(vocab_size=8192, stride=8)
    assert DALLETokenizer.geometry(vocab_size=48, n_hid=16) == dict(vocab_size=48, stride=8)


def test_both_pickles_are_loaded(dalle, sizes, released):
    tokenizer = DALLETokenizer(**sizes, checkpoint=str(released.folder))
    found = released.decoder.state_dict()
    assert all(torch.equal(found[k], v) for k, v in tokenizer.decoder.state_dict().items())
    beside = DALLETokenizer(**sizes, checkpoint=released.folder / 'encoder.pkl')
    assert torch.equal(beside.decode(dalle['indices']), tokenizer.decode(dalle['indices']))
    torch.save(tokenizer.state_dict(), released.folder / 'both.pth')
    again = DALLETokenizer(**sizes, checkpoint=released.folder / 'both.pth')
    assert torch.equal(again.decode(dalle['indices']), tokenizer.decode(dalle['indices']))


@pytest.mark.parametrize('form', ['folder', 'pickle', 'state dict', 'safetensors', 'OpenMMLab'])
def test_without_decoder(dalle, sizes, released, form):
    (released.folder / 'decoder.pkl').unlink()
    path = released.folder / ('' if form == 'folder' else 'encoder.pkl')
    if form == 'state dict':
        path = released.folder / 'encoder.pth'
        torch.save({f'encoder.{k}': v for k, v in dalle.group('state').items()}, path)
    elif form == 'safetensors':
        path = released.folder / 'encoder.safetensors'
        pytest.importorskip('safetensors.torch').save_file(dalle.group('state'), path)
    elif form == 'OpenMMLab':
        from mmpretrain.models.selfsup.cae import DALLEEncoder

        encoder = DALLEEncoder(**sizes)
        encoder.load_state_dict(dalle.group('state'))
        path = released.folder / 'dalle_encoder.pth'
        torch.save(encoder.state_dict(), path)
    tokenizer = DALLETokenizer(**sizes, checkpoint=path)
    assert relative_error(tokenizer(images_of(dalle)), dalle['logits']) <= 1e-5
    with pytest.raises(ValueError, match='encoder.*no decoder weights'):
        tokenizer.decode(dalle['indices'])


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'has no encoder\.pkl: download'):
        DALLETokenizer(checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match='No tokenizer at .*nowhere: download'):
        DALLETokenizer(checkpoint=tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='No tokenizer at .*nowhere'):
        DALLETokenizer.geometry(checkpoint=tmp_path / 'nowhere')


def test_weights_that_do_not_fit(dalle, sizes, released):
    with pytest.raises(ValueError, match=r'input\.w.*\[16, 3, 7, 7\].*\[8, 3, 7, 7\]'):
        DALLETokenizer(**sizes | dict(n_hid=8), checkpoint=released.folder)
    with pytest.raises(ValueError, match=r'Missing key.*encoder\S+group_1\.block_2'):
        DALLETokenizer(**sizes | dict(n_blk_per_group=2), checkpoint=released.folder)
    swapped = released.folder / 'decoder.pkl'
    with pytest.raises(ValueError, match=r'decoder\.pkl: .*Check the sizes'):
        DALLETokenizer(**sizes, checkpoint=swapped)
    state = dalle.group('state')
    del state['blocks.output.conv.b']
    torch.save(state, released.folder / 'encoder.pkl')
    with pytest.raises(ValueError, match=r'Missing key.*encoder\.blocks\.output\.conv\.b'):
        DALLETokenizer(**sizes, checkpoint=released.folder)


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('file', ['encoder.pkl', 'decoder.pkl'])
def test_hostile_pickles_run_nothing(tmp_path, dalle, sizes, package, file):
    mark = tmp_path / 'ran'
    for name in ('encoder.pkl', 'decoder.pkl'):
        module = pickled_module(package, dalle.group('state'), 'Encoder')
        if name == file:
            module.extra = Payload(os.system, f'touch {mark}')
        torch.save(module, tmp_path / name)
    package.remove()
    with pytest.raises(ValueError, match=rf'{file}.*(posix|nt)\.system'):
        DALLETokenizer(**sizes, checkpoint=tmp_path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_truncated_and_old_pickles(tmp_path, dalle, sizes, package):
    path = tmp_path / 'encoder.pkl'
    module = pickled_module(package, dalle.group('state'), 'Encoder')
    torch.save(module, path, _use_new_zipfile_serialization=False)
    package.remove()
    with pytest.raises(ValueError, match=r'encoder\.pkl.*dall_e\.encoder\.Encoder.*re-save'):
        DALLETokenizer(**sizes, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'encoder\.pkl \(1,000 bytes\)'):
        DALLETokenizer(**sizes, checkpoint=path)
