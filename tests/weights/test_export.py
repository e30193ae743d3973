"""Written files give the same features in timm, and classes come in sorted order."""

import argparse
import json

import pytest
import timm
import torch
from conftest import relative_error
from timm.models.beit import Beit
from tiny_backbones import finetuned, tiny, with_head
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.weights.export import convert_file, write
from mcbeit_mm.weights.names import SHARED_TABLE
from mcbeit_mm.weights.reading import read_checkpoint, state_dict_of


def test_stock_timm_gives_the_same_features(tmp_path):
    arch = dict(embed_dims=48, num_layers=12, num_heads=12, feedforward_channels=192)
    model = MCBEiTViT(arch, img_size=224, rel_pos='per_block', out_type='avg_featmap').eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    write(model.state_dict(), tmp_path / 'x.pth', 'timm')
    sizes = dict(embed_dim=48, num_heads=12)
    reference = timm.create_model('beit_base_patch16_224', num_classes=0, **sizes).eval()
    reference.load_state_dict(torch.load(tmp_path / 'x.pth'))  # strictly
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(model(x)[0], reference(x)) < 1e-5


def test_stock_timm_gives_the_same_tokens_after_pretraining(tmp_path):
    model = tiny()
    reference = Beit(
        img_size=64, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=0,
        init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='token',
        norm_layer=lambda d, **kw: nn.LayerNorm(d, eps=1e-6),
    ).eval()  # fmt: skip
    state = {'backbone.' + k: v for k, v in model.state_dict().items()}
    written = write(state, tmp_path / 'x', 'timm')
    missing, unexpected = reference.load_state_dict(written, strict=False)
    assert not missing and sorted(unexpected) == ['mask_token', SHARED_TABLE]
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model(x)[0], reference.forward_features(x)) < 1e-5
    stripped = write(with_head(model, 'lm_head'), tmp_path / 'y.safetensors', 'timm', strip=True)
    reference.load_state_dict(read_checkpoint(tmp_path / 'y.safetensors'))  # strictly
    assert stripped.keys() == reference.state_dict().keys()


def test_labels_come_in_wordnet_order(tmp_path):
    state = with_head(finetuned(), 'head', classes=3)
    src, dst, order = (tmp_path / name for name in ('src.pth', 'dst.pth', 'order.txt'))
    order.write_text('n02000000\nn03000000\nn01000000\n')
    torch.save({'model': state, 'args': argparse.Namespace()}, src)
    summary = convert_file(str(src), dst, 'mcbeit', label_order=order)
    assert f'{len(state)} tensors, official names' in summary and 'dst.pth' in summary
    content = read_checkpoint(dst)
    assert content.keys() == {'state_dict'}
    for name, tensor in state_dict_of(content).items():
        expected = state[name][[2, 0, 1]] if name.startswith('head.') else state[name]
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ('lines', 'message'),
    [('n01 n02 n03', 'WordNet'), ('n00000001 n00000001', 'unique'), ('n00000001', '3 classes')],
)
def test_wrong_label_orders(tmp_path, lines, message):
    torch.save(with_head(finetuned(), 'head', classes=3), tmp_path / 'src.pth')
    (tmp_path / 'order.txt').write_text(lines)
    with pytest.raises(ValueError, match=message):
        convert_file(
            str(tmp_path / 'src.pth'), tmp_path / 'dst.pth', 'timm', tmp_path / 'order.txt'
        )
    assert not (tmp_path / 'dst.pth').exists()


@pytest.mark.parametrize(
    ('dst', 'to', 'message'),
    [
        ('src.pth', 'timm', 'source itself'),
        ('', 'hf', 'source itself'),
        ('folder', 'timm', r'a .pth or .safetensors file'),
        ('x.safetensors', 'hf', 'a folder'),
        ('x.pth', 'tim', "to is 'tim', expected one of"),
    ],
)
def test_wrong_destinations(tmp_path, dst, to, message):
    src = tmp_path / 'src.pth'
    torch.save(tiny().state_dict(), src)
    before = src.read_bytes()
    with pytest.raises(ValueError, match=message):
        convert_file(str(src), tmp_path / dst, to)
    assert src.read_bytes() == before and list(tmp_path.iterdir()) == [src]


def test_what_is_no_transformer_is_an_error(tmp_path):
    torch.save({'conv.weight': torch.ones(2)}, tmp_path / 'src.pth')
    with pytest.raises(ValueError, match='no vision transformer'):
        convert_file(str(tmp_path / 'src.pth'), tmp_path / 'x.pth', 'mcbeit')


def test_a_hugging_face_folder_comes_back(tmp_path):
    state = with_head(tiny(), 'lm_head')
    full_model = {f'backbone.{k}': v for k, v in state.items()} | {'neck.w': torch.ones(1)}
    torch.save({'state_dict': full_model}, tmp_path / 'src.pth')
    summary = convert_file(str(tmp_path / 'src.pth'), tmp_path / 'hf', 'hf')
    assert "skipped 1 tensors outside the transformer: ['neck.w']" in summary
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert config['vocab_size'] == 7 and config['image_size'] == 64
    assert config['num_attention_heads'] == 4 and config['use_shared_relative_position_bias']
    model = tiny()
    report = load_weights(model, tmp_path / 'hf')
    assert not (report.missing or report.fresh)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
