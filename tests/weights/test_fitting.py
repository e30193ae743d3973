"""Loading: the authors' conversions, every kind of mismatch, and one result by every route."""

import copy

import pytest
import torch
from conftest import backbone_from, relative_error
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.errors import SetupError
from mcbeit_mm.layers.rel_pos import position_index
from mcbeit_mm.weights.fitting import FitSettings
from mcbeit_mm.weights.names import BLOCK_TABLE, SHARED_TABLE, convert
from mcbeit_mm.weights.positions import resize_pos_embed, stretch_pos_embed, table_grid

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)


def tiny(**kwargs) -> MCBEiTViT:
    model = MCBEiTViT(ARCH, **(dict(img_size=64) | kwargs)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def finetuned(**kwargs) -> MCBEiTViT:
    return tiny(**(dict(rel_pos='per_block', out_type='avg_featmap') | kwargs))


class Classifier(BaseModule):
    """A backbone and a head under mmpretrain's names."""

    def __init__(self, backbone: MCBEiTViT, classes: int = 5):
        super().__init__()
        self.backbone, self.head = backbone, nn.Module()
        self.head.fc = nn.Linear(32, classes)


@pytest.mark.parametrize('size', ['same', 'large'])
def test_finetuning_equals_the_authors_conversion(golden, size):
    g = golden('finetune_convert')
    side = g.sizes[size]['img_size']
    sizes = g.sizes | dict(img_size=[side, side])
    model = backbone_from(sizes, rel_pos='per_block', out_type='avg_featmap').eval()
    for name, tensor in g.group(f'{size}/kept').items():
        if name.startswith('fc_norm.'):
            model.get_parameter(name).data.copy_(tensor)
    report = load_weights(model, {'model': g.group('src')})
    assert report.share == 1 and report.fresh == ['fc_norm.weight', 'fc_norm.bias']
    assert len(report.resized) == (g.sizes['depth'] if size == 'large' else 0)
    assert sorted(report.unused) == sorted(g.sizes[size]['checkpoint_keys_not_used'])

    tables = torch.stack([block.attn.relative_position_bias_table for block in model.blocks])
    if size == 'same':
        assert torch.equal(tables, g['same/tables'])
    assert relative_error(tables, g[f'{size}/tables']) < 1e-5
    features = model(g[f'{size}/image'])[0]
    assert relative_error(features, g[f'{size}/forward_features']) < 1e-5
    head = g.group(f'{size}/kept')
    logits = nn.functional.linear(features, head['head.weight'], head['head.bias'])
    assert relative_error(logits, g[f'{size}/logits']) < 1e-5


def test_segmentation_equals_the_authors_loader(golden):
    g = golden('seg_convert')
    sizes = g.sizes | dict(img_size=[g.sizes['dst_img']] * 2)
    model = backbone_from(
        sizes, rel_pos='per_block', abs_pos=True, out_type='featmap', final_norm=False
    )
    state = {SHARED_TABLE: g['rel/src_table'], 'pos_embed': g['abs/src_pos_embed']}
    load_weights(model, state, min_match=0)
    tables = torch.stack([block.attn.relative_position_bias_table for block in model.blocks])
    assert relative_error(tables, g['rel/dst_tables']) < 1e-5
    assert relative_error(model.pos_embed, g['abs/dst_pos_embed']) < 1e-5


def test_embeddings_equal_the_authors_conversion(golden):
    g = golden('finetune_convert')
    sizes = g.sizes | dict(img_size=[g.sizes['large_img']] * 2)
    model = backbone_from(sizes, rel_pos='none', abs_pos=True, out_type='cls_token')
    state = g.group('src') | {'pos_embed': g['abs/src_pos_embed']}
    load_weights(model, state)
    assert relative_error(model.pos_embed, g['abs/large_pos_embed']) < 1e-5


def test_finetuned_models_of_the_authors_load(golden):
    g = golden('finetune')
    model = backbone_from(g.sizes, rel_pos='per_block', out_type='avg_featmap').eval()
    report = load_weights(model, g.group('state'))
    assert not (report.missing or report.fresh or report.resized)
    assert report.unused == ['head.weight', 'head.bias']
    assert relative_error(model(g['image'])[0], g['forward_features']) < 1e-5


def test_absolute_positions_of_the_authors_load(golden):
    g = golden('finetune_abs')
    model = backbone_from(g.sizes, rel_pos='none', abs_pos=True, out_type='cls_token').eval()
    load_weights(model, g.group('state'))
    assert relative_error(model(g['image'])[0], g['forward_features']) < 1e-5
    grid = model.patch_grid(*g.sizes['large'])
    embedding = stretch_pos_embed(model.pos_embed, model.grid, grid)
    assert relative_error(embedding, g['large/pos_embed']) < 1e-5
    assert relative_error(model(g['large/image'])[0], g['large/forward_features']) < 1e-5
    # Conversion of a checkpoint resizes to the grid instead: near, not equal.
    assert 1e-3 < relative_error(resize_pos_embed(model.pos_embed, model.grid, grid), embedding)


@pytest.mark.parametrize('target', [(7, 9), (3, 4), (12, 5), (64, 40)])
def test_stretching_gives_the_grid_asked_for(target):
    pos_embed = torch.randn(1, 1 + 4 * 5, 8, requires_grad=True)
    stretched = stretch_pos_embed(pos_embed, (4, 5), target)
    assert stretched.shape == (1, 1 + target[0] * target[1], 8)
    stretched.sum().backward()
    assert pos_embed.grad.abs().sum() > 0
    assert stretch_pos_embed(pos_embed, (4, 5), (4, 5)) is pos_embed


@pytest.mark.parametrize('size', [(96, 96), (32, 48), (80, 32), (48, 48)])
@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
def test_loading_at_another_size_is_what_forward_does(size, rel_pos):
    """Non-square and shrinking sizes too: resized on loading or in forward, the same features."""
    source = tiny(rel_pos=rel_pos)
    model = tiny(img_size=size, rel_pos=rel_pos)
    load_weights(model, source.state_dict())
    x = torch.randn(2, 3, *size)
    assert relative_error(model(x)[0], source(x)[0]) < 1e-5


def test_grid_of_a_table():
    square, wide = 7 * 7, 3 * 9
    assert table_grid(square, own=(6, 6)) == (4, 4)
    assert table_grid(wide, own=(2, 5)) == (2, 5)
    assert table_grid(wide, own=(2, 5), given=(5, 2)) == (5, 2)
    index = position_index((5, 2), torch.device('cpu'))
    assert table_grid(wide, own=(2, 5), index=index) == (5, 2)
    with pytest.raises(ValueError, match=r'source_grid=\(h, w\)'):
        table_grid(wide, own=(4, 4))
    with pytest.raises(ValueError, match=r'nor \(3, 3\)'):
        table_grid(square, own=(6, 6), given=(3, 3))


def test_non_square_sources(tmp_path):
    source = tiny(img_size=(32, 80))
    model = finetuned(img_size=(32, 80))
    load_weights(model, source.state_dict())
    assert torch.equal(
        model.blocks[1].attn.relative_position_bias_table,
        source.rel_pos_bias.relative_position_bias_table,
    )
    other = finetuned()
    with pytest.raises(SetupError, match='source_grid'):
        load_weights(other, source.state_dict())
    load_weights(other, source.state_dict(), source_grid=(2, 5))
    indexed = finetuned()
    index = position_index((2, 5), torch.device('cpu'))
    load_weights(indexed, source.state_dict() | {'rel_pos_bias.relative_position_index': index})
    for a, b in zip(other.blocks, indexed.blocks, strict=True):
        assert torch.equal(a.attn.relative_position_bias_table, b.attn.relative_position_bias_table)


def test_half_precision_weights_of_deepspeed_load():
    source, model = tiny(), finetuned(img_size=96)
    load_weights(model, {'module': {k: v.half() for k, v in source.state_dict().items()}})
    expected = finetuned(img_size=96)
    load_weights(expected, source.state_dict())
    for name, tensor in model.state_dict().items():
        if 'fc_norm' not in name:
            torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('to', ['mcbeit', 'timm', 'hf'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'encoder.', 'student.'])
def test_every_naming_gives_the_same_model(to, prefix):
    state = tiny().state_dict()
    named = {prefix + k: v for k, v in convert(state, to=to).items()}
    for model in (finetuned(), tiny()):
        plain = copy.deepcopy(model)
        load_weights(model, {'model': named})
        plain.load_state_dict(state, strict=False)
        for name, tensor in plain.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name


def test_kinds_of_tables():
    with pytest.raises(SetupError, match="rel_pos='per_block'"):
        load_weights(tiny(), finetuned().state_dict())
    report = load_weights(tiny(rel_pos='none'), tiny().state_dict())
    assert report.unused == [SHARED_TABLE] and not report.missing
    detector = finetuned().state_dict()
    for name in detector:
        if name.endswith(BLOCK_TABLE):
            detector[name] = detector[name][:-3]
    with pytest.raises(SetupError, match='rows of the class token'):
        load_weights(finetuned(), detector)
    load_weights(tiny(rel_pos='none', out_type='avg_featmap'), detector)


def test_too_few_tensors_are_an_error_that_names_them():
    state = tiny().state_dict()
    for name in [name for name in state if name.startswith('blocks.1.')]:
        state[name.replace('blocks.1', 'stage.1')] = state.pop(name)
    state['blocks.0.attn.qkv.weight'] = torch.zeros(48, 16)
    model = finetuned()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SetupError) as error:
        load_weights(model, state)
    message = str(error.value)
    for part in ('missing: blocks.', 'unused: ', 'stage.1', 'arch', 'min_match', '90%'):
        assert part in message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    report = load_weights(model, state, min_match=0.4)
    assert 0.4 < report.share < 0.9
    assert any('(48, 16), expected (96, 32)' in name for name in report.unused)
    assert model.fit_settings == FitSettings()  # the setting was for that call


def test_a_bare_checkpoint_must_not_vanish_on_its_way_into_a_full_model():
    """MMEngine hands a child only the names under its prefix: here, none."""
    for load in (nn.Module.load_state_dict, mmengine_load_state_dict):
        with pytest.raises(SetupError, match='FitWeightsHook'):
            load(Classifier(finetuned()), tiny().state_dict(), strict=False)


def test_exact_weights_pass_any_loader_without_a_word(caplog, capsys):
    source, model = Classifier(finetuned()), Classifier(finetuned())
    model.load_state_dict(source.state_dict(), strict=True)
    mmengine_load_state_dict(model, source.state_dict(), strict=True)
    assert model.backbone.load_report.exact
    assert not caplog.text and not capsys.readouterr().out
    torch.optim.swa_utils.AveragedModel(model).module.load_state_dict(source.state_dict())
    copied = copy.deepcopy(model)
    copied.load_state_dict({k: torch.zeros_like(v) for k, v in model.state_dict().items()})
    assert copied.backbone.cls_token.abs().max() == 0 < model.backbone.cls_token.abs().max()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*lm_head\.weight'):
        model.backbone.load_state_dict(
            source.backbone.state_dict() | {'lm_head.weight': torch.ones(1)}
        )


def test_threshold_can_be_lifted_for_parts():
    model = Classifier(finetuned())
    model.backbone.fit_settings = FitSettings(min_match=0)
    model.load_state_dict({'head.fc.bias': torch.ones(5)}, strict=False)
    assert model.head.fc.bias.eq(1).all()


def test_heads_go_where_they_fit():
    state = finetuned().state_dict()
    state |= {'head.weight': torch.randn(5, 32), 'head.bias': torch.randn(5)}
    five, nine = Classifier(finetuned(), 5), Classifier(finetuned(), 9)
    report = load_weights(five, state)
    assert not report.unused and torch.equal(five.head.fc.weight, state['head.weight'])
    before = nine.head.fc.weight.clone()
    report = load_weights(nine, state)
    assert report.unused == [
        'head.fc.weight (5, 32), expected (9, 32)', 'head.fc.bias (5,), expected (9,)'
    ]  # fmt: skip
    assert torch.equal(nine.head.fc.weight, before)
    again = Classifier(finetuned())
    load_weights(again, {'state_dict': five.state_dict(), 'meta': {}})
    assert all(torch.equal(v, five.state_dict()[k]) for k, v in again.state_dict().items())
    pretrained = {f'backbone.{k}': v for k, v in tiny().state_dict().items()}
    report = load_weights(again, pretrained | {'head.lm_head.weight': torch.ones(7, 32)})
    assert 'lm_head.weight' in report.unused


def test_models_without_one_backbone_are_an_error():
    with pytest.raises(SetupError, match='got'):
        load_weights(nn.Linear(2, 2), {'weight': torch.ones(2, 2)})
    pair = nn.ModuleDict(dict(a=tiny(), b=tiny()))
    with pytest.raises(SetupError, match=r"\['a', 'b'\]"):
        load_weights(pair, tiny().state_dict())


def test_init_cfg(tmp_path):
    source, path = tiny(), tmp_path / 'x.pth'
    torch.save({'model': source.state_dict()}, path)
    expected = finetuned()
    load_weights(expected, path)

    def built(**cfg):
        init_cfg = dict(type='Pretrained', checkpoint=str(path)) | cfg
        return Classifier(
            MCBEiTViT(
                ARCH, img_size=64, rel_pos='per_block', out_type='avg_featmap', init_cfg=init_cfg
            )
        )

    model = built()
    model.init_weights()
    for name, tensor in expected.state_dict().items():
        if not name.startswith('fc_norm.'):
            assert torch.equal(model.backbone.state_dict()[name], tensor)
    assert model.backbone.is_init and model.backbone.init_cfg['type'] == 'Pretrained'

    torch.save({f'a.{k}': v for k, v in source.state_dict().items()}, path)
    built(prefix='a').init_weights()
    few = {k: v for k, v in source.state_dict().items() if 'mlp' not in k}
    torch.save(few, path)
    with pytest.raises(SetupError, match=r'init_cfg=None'):
        built().init_weights()
    built(min_match=0.5).init_weights()
    with pytest.raises(SetupError, match='No checkpoint'):
        built(checkpoint=str(tmp_path / 'none.pth')).init_weights()


def test_init_cfg_with_other_initialisers(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / 'x.pth')
    cfgs = [
        dict(type='Constant', layer='LayerNorm', val=3.0),
        dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')),
    ]
    model = MCBEiTViT(ARCH, img_size=64, out_type='avg_featmap', init_cfg=cfgs)
    model.init_weights()
    assert model.fc_norm.weight.eq(3).all()
    assert not model.blocks[0].norm1.weight.eq(3).any()


def test_weights_of_a_deeper_model_are_refused():
    deep, shallow = (MCBEiTViT(dict(ARCH, num_layers=n), img_size=64) for n in (4, 2))
    with pytest.raises(SetupError, match='have 4 blocks, the backbone 2'):
        load_weights(shallow, deep.state_dict())
    load_weights(shallow, deep.state_dict(), min_match=0)


def test_both_kinds_of_tables_are_refused():
    state = tiny(rel_pos='shared').state_dict()
    own = tiny(rel_pos='per_block').state_dict()
    tables = {k: v + 1 for k, v in own.items() if k.endswith('relative_position_bias_table')}
    with pytest.raises(ValueError, match='a shared position table and different ones per block'):
        load_weights(tiny(rel_pos='per_block'), state | tables)


def test_addresses_are_not_paths():
    with pytest.raises(ValueError, match='https://x.org/w.pth is a URL'):
        load_weights(tiny(), 'https://x.org/w.pth')
