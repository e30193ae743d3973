"""Pins `PATH#sha256=HEX` are parsed, checked, and accepted wherever weights are loaded."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import TINY_VQGAN

from mcbeit_mm.fileio.pins import check_pin, sha256_of, split_pin
from mcbeit_mm.weights.reading import read_checkpoint

HEX = 'ab' * 32


@pytest.fixture
def file(tmp_path):
    file = tmp_path / 'a #1.pth'
    torch.save({'state_dict': {'w': torch.ones(2)}}, file)
    return file


def digest_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize('path', ['x.pth', 'a#1/x.pth', 'https://host/x.pth?v=1', '#', 's3://b/x'])
def test_split(path):
    assert split_pin(path) == (path, None)
    assert split_pin(f'{path}#sha256={HEX}') == (path, HEX)
    assert split_pin(f'{path}#sha256={HEX.upper()}') == (path, HEX)
    assert split_pin(Path('x.pth')) == ('x.pth', None)


@pytest.mark.parametrize(
    'pin',
    [
        '#sha256=',
        f'#sha256={HEX[:-1]}',
        f'#sha256={HEX}0',
        f'#sha256={"g" * 64}',
        f'#sha256={HEX}#sha256={HEX}',
        f'#sha256:{HEX}',
        f'#SHA256={HEX}',
        '#sha1=' + 'a' * 40,
    ],
)
def test_malformed_pins(pin):
    with pytest.raises(ValueError, match='64 hexadecimal digits that `sha256sum PATH` prints'):
        split_pin(f'x.pth{pin}')
    with pytest.raises(ValueError, match='64 hexadecimal'):
        split_pin(f'#sha256={HEX}')


def test_check(file):
    assert check_pin(file, None) == check_pin(file, digest_of(file)) == file
    with pytest.raises(ValueError, match=f'has the SHA-256 {digest_of(file)}, expected {HEX}.*pin'):
        check_pin(file, HEX)
    with pytest.raises(ValueError, match='is a folder'):
        check_pin(file.parent, HEX)


def test_sha256_of(tmp_path):
    content = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / 'x').write_bytes(content)
    assert sha256_of(tmp_path / 'x') == hashlib.sha256(content).hexdigest()


def test_one_changed_byte(file):
    pinned = f'{file}#sha256={digest_of(file)}'
    assert torch.equal(read_checkpoint(pinned)['state_dict']['w'], torch.ones(2))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match='another file or has been changed'):
        read_checkpoint(pinned)


def test_folders(tmp_path):
    file = tmp_path / 'mp_rank_00_model_states.pt'
    torch.save({'module': {'w': torch.ones(2)}}, file)
    assert 'module' in read_checkpoint(f'{tmp_path}#sha256={digest_of(file)}')
    with pytest.raises(ValueError, match='expected'):
        read_checkpoint(f'{tmp_path}#sha256={HEX}')
    with pytest.raises(FileNotFoundError, match='none.pth'):
        read_checkpoint(f'{tmp_path}/none.pth#sha256={HEX}')


def test_mmengine_takes_pins(file):
    from mmengine.runner.checkpoint import _load_checkpoint

    from mcbeit_mm.errors import SetupError

    pinned = f'{file}#sha256={digest_of(file)}'
    assert torch.equal(_load_checkpoint(pinned)['state_dict']['w'], torch.ones(2))
    with pytest.raises(SetupError, match='expected'):
        _load_checkpoint(f'{file}#sha256={HEX}')


def test_tokenizers_take_pins(tmp_path):
    from mcbeit_mm.tokenizers import DALLETokenizer, DiscreteVAETokenizer, GumbelVQGANTokenizer
    from mcbeit_mm.tokenizers.release import write_release

    write_release(tmp_path / 'vqgan', GumbelVQGANTokenizer(**TINY_VQGAN), TINY_VQGAN)
    dvae_sizes = dict(num_tokens=4, codebook_dim=4, num_layers=1, hidden_dim=4)
    torch.save(
        {'weights': DiscreteVAETokenizer(**dvae_sizes).state_dict()},
        tmp_path / 'pytorch_model.bin',
    )
    dalle_sizes = dict(n_hid=4, vocab_size=4)
    torch.save(DALLETokenizer(**dalle_sizes).state_dict(), tmp_path / 'encoder.pkl')
    for kind, sizes, folder, name in (
        (GumbelVQGANTokenizer, {}, 'vqgan', 'last.ckpt'),
        (DiscreteVAETokenizer, dvae_sizes, '', 'pytorch_model.bin'),
        (DALLETokenizer, dalle_sizes, '', 'encoder.pkl'),
    ):
        digest = digest_of(tmp_path / folder / name)
        tokenizer = kind(**sizes, checkpoint=f'{tmp_path / folder}#sha256={digest}')
        assert tokenizer.identity['sha256'] == digest
        assert tokenizer.identity['checkpoint'] == str(tmp_path / folder / name)
        with pytest.raises(ValueError, match=f'expected {HEX}'):
            kind(**sizes, checkpoint=f'{tmp_path / folder}#sha256={HEX}')


def test_perceptual_weights_take_pins(tmp_path):
    from mcbeit_mm.tokenizers.training.perceptual import PerceptualLoss

    torch.save({'features.0.bias': torch.ones(1)}, tmp_path / 'vgg.pth')
    for pin, message in ((HEX, f'expected {HEX}'), (digest_of(tmp_path / 'vgg.pth'), 'has no')):
        with pytest.raises(ValueError, match=message):
            PerceptualLoss(f'{tmp_path}/vgg.pth#sha256={pin}')
    with pytest.raises(FileNotFoundError, match='none.pth'):
        PerceptualLoss(f'{tmp_path}/none.pth#sha256={HEX}')


def test_tools_take_pins(tmp_path, monkeypatch, capsys):
    import runpy
    import sys

    from conftest import ROOT

    def convert(source, target):
        arguments = ['convert_checkpoint.py', source, str(target), '--to', 'mcbeit']
        monkeypatch.setattr(sys, 'argv', arguments)
        runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')

    file = tmp_path / 'x.pth'
    torch.save({'blocks.0.norm1.weight': torch.ones(2)}, file)
    for source, target in ((HEX, 'out.pth'), (digest_of(file), 'x.pth')):
        with pytest.raises(SystemExit, match='2'):
            convert(f'{file}#sha256={source}', tmp_path / target)
    error = capsys.readouterr().err
    assert f'expected {HEX}' in error and 'x.pth is the source itself' in error
    convert(f'{file}#sha256={digest_of(file)}', tmp_path / 'out.pth')
    assert read_checkpoint(tmp_path / 'out.pth')
