"""Names are detected, and renaming there and back changes nothing."""

import pytest
import torch
from conftest import relative_error

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.weights.names import BLOCK_TABLE, SHARED_TABLE, convert, detect, to_official

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def weights(**kwargs):
    """Random official weights of a small model and its head."""
    model = MCBEiTViT(ARCH, img_size=64, **kwargs)
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    head = 'lm_head' if model.mask_token is not None else 'head'
    return state | {f'{head}.weight': torch.randn(7, 32), f'{head}.bias': torch.randn(7)}


KINDS = {
    'pretraining': dict(),
    'pretraining, abs': dict(abs_pos=True, rel_pos='none'),
    'fine-tuning': dict(rel_pos='per_block', out_type='avg_featmap'),
    'class token, abs': dict(rel_pos='per_block', abs_pos=True, out_type='cls_token'),
    'no layer scale': dict(layer_scale_init_value=0),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('via', ['timm', 'hf', 'mcbeit'])
def test_round_trips_change_nothing(kind, via):
    state = weights(**KINDS[kind])
    there = convert(state, to=via)
    assert_same(convert(there, to='mcbeit'), state)
    assert_same(convert(convert(there, to='hf'), to=via), there)


def test_timm_gets_a_table_per_block():
    state = weights()
    there = convert(state, to='timm')
    assert there.keys() - state.keys() == {f'blocks.{i}.{BLOCK_TABLE}' for i in range(2)}
    assert torch.equal(there[f'blocks.1.{BLOCK_TABLE}'], state[SHARED_TABLE])
    there[f'blocks.1.{BLOCK_TABLE}'] += 1  # no longer a copy
    assert_same(convert(there, to='mcbeit'), there)


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'student.', 'a.b.'])
@pytest.mark.parametrize('via', ['timm', 'hf'])
def test_prefixes_and_index_buffers_go(prefix, via):
    state = {k: v for k, v in weights().items() if 'head' not in k}
    there = convert(state, to=via)
    index = {'blocks.0.attn.relative_position_index': torch.zeros(17, 17)} if via == 'timm' else {}
    there = {prefix + name: tensor for name, tensor in (there | index).items()}
    assert detect(there)[1] == prefix + ('beit.' if via == 'hf' else '')
    assert_same(convert(there), state)


def test_transformers_keeps_the_norm_of_the_token_head_outside():
    state = weights()
    there = convert(state, to='hf')
    assert 'layernorm.weight' in there and 'beit.layernorm.weight' not in there
    assert_same(convert({f'x.{name}': tensor for name, tensor in there.items()}), state)


def test_other_parts_of_a_full_model_are_kept():
    state = {f'backbone.{k}': v for k, v in weights(out_type='featmap').items() if 'head' not in k}
    neck = {'neck.a.weight': torch.ones(1), 'decode_head.fc.weight': torch.ones(2)}
    official = to_official(state | neck)
    assert official.rest.keys() == neck.keys() and 'cls_token' in official.backbone
    assert 'neck.a.weight' in convert(state | neck)


def test_mmpretrain_heads():
    state = {f'backbone.{k}': v for k, v in weights().items() if 'head' not in k}
    fc, tokens = torch.randn(5, 32), torch.randn(9, 32)
    for name in ('head.cls_head.weight', 'head.lm_head.weight'):
        out = convert(state | {'head.fc.weight': fc, name: tokens})
        assert torch.equal(out['head.weight'], fc) and torch.equal(out['lm_head.weight'], tokens)


def test_known_prefix_wins_among_several_transformers():
    anchor = 'blocks.0.norm1.weight'
    assert detect([f'teacher.{anchor}', f'backbone.{anchor}']) == ('official', 'backbone.')
    assert detect(['layers.0.ln1.weight', f'model.{anchor}']) == ('mmpretrain', '')
    assert detect([f'teacher.{anchor}']) == ('official', 'teacher.')
    assert detect(['conv1.weight', f'x{anchor}']) is None
    with pytest.raises(ValueError, match=r"\['student\.', 'teacher\.'\]"):
        detect([f'teacher.{anchor}', f'student.{anchor}'])


@pytest.mark.parametrize('shared', [False, True])
def test_mmpretrain_models_are_read(shared):
    from mmpretrain.models import BEiTViT

    flags = dict(use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
    reference = BEiTViT(
        ARCH, img_size=64, use_abs_pos_emb=True, out_type='avg_featmap', layer_scale_init_value=0.5,
        **flags,
    )  # fmt: skip
    reference.eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = MCBEiTViT(ARCH, img_size=64, rel_pos='per_block', abs_pos=True, out_type='avg_featmap')
    state = {f'backbone.{k}': v for k, v in reference.state_dict().items()}
    assert detect(state) == ('mmpretrain', 'backbone.')
    model.load_state_dict(convert(state))
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model.eval()(x)[0], reference(x)[0]) < 1e-5


def test_mmseg_models_are_read():
    from mmseg.models.backbones import BEiT

    reference = BEiT(
        img_size=64, embed_dims=32, num_layers=2, num_heads=4, mlp_ratio=2, out_indices=[0, 1],
        norm_cfg=dict(type='LN', eps=1e-6),
    )  # fmt: skip
    reference.eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = MCBEiTViT(
        ARCH, img_size=64, rel_pos='per_block', out_type='featmap', out_indices=(0, 1),
        final_norm=False,
    ).eval()  # fmt: skip
    model.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for got, expected in zip(model(x), reference(x), strict=True):
        assert relative_error(got, expected) < 1e-5


def test_contradicting_names_are_an_error():
    state = convert(weights(out_type='cls_token'), to='hf')
    twice = state | {'layernorm.weight': torch.zeros(32)}
    with pytest.raises(ValueError, match=r'two different tensors for norm\.weight'):
        convert(twice)
    with pytest.raises(ValueError, match="'hf'"):
        convert(state, to='keras')
