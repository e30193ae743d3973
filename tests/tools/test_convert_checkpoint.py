"""Export: what timm and transformers compute from the written files, labels, and the command."""

import argparse
import json
import runpy
import sys

import pytest
import timm
import torch
from conftest import ROOT, relative_error
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.weights.export import write
from mcbeit_mm.weights.names import SHARED_TABLE
from mcbeit_mm.weights.reading import read_checkpoint, state_dict_of

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
FINE = dict(rel_pos='per_block', out_type='avg_featmap')


def tiny(arch=ARCH, **kwargs) -> MCBEiTViT:
    model = MCBEiTViT(arch, **(dict(img_size=64) | kwargs)).eval()
    for name, parameter in model.named_parameters():
        if 'table' in name or 'norm' in name or 'bias' in name or parameter.ndim == 3:
            nn.init.normal_(parameter, mean=float(name.endswith('norm.weight')), std=0.5)
    return model


def with_head(model: MCBEiTViT, name: str, classes: int = 7) -> dict:
    state = model.state_dict()
    return state | {
        f'{name}.weight': torch.randn(classes, 32),
        f'{name}.bias': torch.randn(classes),
    }


def run(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
    runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')


def test_stock_timm_gives_the_same_features(tmp_path):
    model = tiny('base', img_size=224, **FINE)
    write(model.state_dict(), tmp_path / 'x.pth', 'timm')
    reference = timm.create_model('beit_base_patch16_224', num_classes=0).eval()
    reference.load_state_dict(torch.load(tmp_path / 'x.pth'))  # strictly
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(model(x)[0], reference(x)) < 1e-5


def test_stock_timm_gives_the_same_tokens_after_pretraining(tmp_path):
    from timm.models.beit import Beit

    model = tiny()
    reference = Beit(
        img_size=64, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=0,
        init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='token',
        norm_layer=lambda d, **kw: nn.LayerNorm(d, eps=1e-6),
    ).eval()  # fmt: skip
    written = write(
        {'backbone.' + k: v for k, v in model.state_dict().items()}, tmp_path / 'x', 'timm'
    )
    missing, unexpected = reference.load_state_dict(written, strict=False)
    assert not missing and sorted(unexpected) == ['mask_token', SHARED_TABLE]
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model(x)[0], reference.forward_features(x)) < 1e-5
    stripped = write(with_head(model, 'lm_head'), tmp_path / 'y.safetensors', 'timm', strip=True)
    reference.load_state_dict(read_checkpoint(tmp_path / 'y.safetensors'))  # strictly
    assert stripped.keys() == reference.state_dict().keys()


def test_labels_come_in_wordnet_order(tmp_path, monkeypatch, capsys):
    state = with_head(tiny(**FINE), 'head', classes=3)
    (tmp_path / 'order.txt').write_text('n02000000\nn03000000\nn01000000\n')
    torch.save({'model': state, 'args': argparse.Namespace()}, tmp_path / 'src.pth')
    run(
        monkeypatch, tmp_path / 'src.pth', tmp_path / 'dst.pth', '--to', 'mcbeit', '--label-order',
        tmp_path / 'order.txt',
    )  # fmt: skip
    content = read_checkpoint(tmp_path / 'dst.pth')
    assert content.keys() == {'state_dict'}
    for name, tensor in state_dict_of(content).items():
        expected = state[name][[2, 0, 1]] if name.startswith('head.') else state[name]
        assert torch.equal(tensor, expected)
    out = capsys.readouterr().out
    assert f'{len(state)} tensors, official names' in out and 'dst.pth' in out


@pytest.mark.parametrize(
    'lines, message',
    [('n01 n02 n03', 'WordNet'), ('n00000001 n00000001', 'unique'), ('n00000001', '3 classes')],
)
def test_wrong_label_orders(tmp_path, monkeypatch, capsys, lines, message):
    torch.save(with_head(tiny(**FINE), 'head', classes=3), tmp_path / 'src.pth')
    (tmp_path / 'order.txt').write_text(lines)
    with pytest.raises(SystemExit):
        run(
            monkeypatch, tmp_path / 'src.pth', tmp_path / 'dst.pth', '--to', 'timm',
            '--label-order', tmp_path / 'order.txt',
        )  # fmt: skip
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'dst.pth').exists()


@pytest.mark.parametrize(
    'dst, to, message',
    [
        ('src.pth', 'timm', 'source itself'),
        ('folder', 'timm', r'a .pth or .safetensors file'),
        ('x.safetensors', 'hf', 'a folder'),
    ],
)
def test_wrong_destinations(tmp_path, monkeypatch, capsys, dst, to, message):
    torch.save(tiny().state_dict(), tmp_path / 'src.pth')
    before = (tmp_path / 'src.pth').read_bytes()
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, tmp_path / 'src.pth', tmp_path / dst, '--to', to)
    assert error.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / 'src.pth').read_bytes() == before


def test_what_is_no_transformer_is_an_error(tmp_path, monkeypatch, capsys):
    torch.save({'conv.weight': torch.ones(2)}, tmp_path / 'src.pth')
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / 'src.pth', tmp_path / 'x.pth', '--to', 'mcbeit')
    assert 'no vision transformer' in capsys.readouterr().err


def test_a_hugging_face_folder_comes_back(tmp_path, monkeypatch):
    state = with_head(tiny(), 'lm_head')
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()}}, tmp_path / 'src.pth')
    run(monkeypatch, tmp_path / 'src.pth', tmp_path / 'hf', '--to', 'hf')
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert config['vocab_size'] == 7 and config['image_size'] == 64
    assert config['num_attention_heads'] == 4 and config['use_shared_relative_position_bias']
    model = tiny()
    report = load_weights(model, tmp_path / 'hf')
    assert not (report.missing or report.fresh)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_transformers_pretraining(tmp_path):
    transformers = pytest.importorskip('transformers')
    model, mask = tiny(), torch.rand(2, 16) < 0.5
    state = with_head(model, 'lm_head')
    write(state, tmp_path, 'hf')
    kind = transformers.BeitForMaskedImageModeling
    reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
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
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    expected = nn.functional.linear(model(X)[0], state['head.weight'], state['head.bias'])
    assert relative_error(reference.eval()(X).logits, expected) < 1e-5
    back = tiny(rel_pos='per_block', out_type=out_type, abs_pos=abs_pos)
    load_weights(back, reference.state_dict())  # the names of the live model
    assert torch.equal(back(X)[0], model(X)[0])


@pytest.mark.parametrize('stripped', [False, True])
def test_transformers_backbone(tmp_path, stripped):
    transformers = pytest.importorskip('transformers')
    model = tiny()
    write(
        with_head(model, 'lm_head') if stripped else model.state_dict(),
        tmp_path,
        'hf',
        None,
        stripped,
    )
    reference, info = transformers.BeitModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert relative_error(reference.eval()(X).last_hidden_state, model(X)[0]) < 1e-5
