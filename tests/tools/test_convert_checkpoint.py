"""The command, and the output of transformers for the written folder."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT, relative_error
from tiny_backbones import tiny, with_head
from torch import nn

from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.weights.export import write
from mcbeit_mm.weights.reading import read_checkpoint, state_dict_of

TOOL = [sys.executable, str(ROOT / 'tools' / 'convert_checkpoint.py')]
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_command(tmp_path):
    state = with_head(tiny(), 'lm_head')
    torch.save({'model': state}, tmp_path / 'src.pth')
    command = [*TOOL, tmp_path / 'src.pth', tmp_path / 'dst.pth', '--to', 'mcbeit', '--strip']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'src.pth: {len(state)} tensors, official names' in done.stdout
    written = state_dict_of(read_checkpoint(tmp_path / 'dst.pth'))
    assert state.keys() - written.keys() == {'mask_token', 'lm_head.weight', 'lm_head.bias'}
    assert all(torch.equal(tensor, state[name]) for name, tensor in written.items())


def assert_complete(info: dict) -> None:
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))


def test_transformers_pretraining(tmp_path):
    transformers = pytest.importorskip('transformers')
    model, mask = tiny(), torch.rand(2, 16) < 0.5
    state = with_head(model, 'lm_head')
    write(state, tmp_path, 'hf')
    kind = transformers.BeitForMaskedImageModeling
    reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    tokens = model(X, mask)[0][:, 1:]
    expected = nn.functional.linear(tokens, state['lm_head.weight'], state['lm_head.bias'])
    assert relative_error(reference.eval()(X, bool_masked_pos=mask).logits, expected) < 1e-5


@pytest.mark.parametrize('abs_pos', [False, True])
@pytest.mark.parametrize('out_type', ['avg_featmap', 'cls_token'])
def test_transformers_fine_tuning(tmp_path, out_type, abs_pos):
    transformers = pytest.importorskip('transformers')
    model = tiny(rel_pos='per_block', out_type=out_type, abs_pos=abs_pos)
    state = with_head(model, 'head')
    write(state, tmp_path, 'hf')
    kind = transformers.BeitForImageClassification
    reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    expected = nn.functional.linear(model(X)[0], state['head.weight'], state['head.bias'])
    assert relative_error(reference.eval()(X).logits, expected) < 1e-5
    back = tiny(rel_pos='per_block', out_type=out_type, abs_pos=abs_pos)
    load_weights(back, reference.state_dict())  # the names of the live model
    assert torch.equal(back(X)[0], model(X)[0])


@pytest.mark.parametrize('strip', [False, True])
def test_transformers_backbone(tmp_path, strip):
    transformers = pytest.importorskip('transformers')
    model = tiny()
    state = with_head(model, 'lm_head') if strip else model.state_dict()
    write(state, tmp_path, 'hf', strip=strip)
    reference, info = transformers.BeitModel.from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    assert relative_error(reference.eval()(X).last_hidden_state, model(X)[0]) < 1e-5
