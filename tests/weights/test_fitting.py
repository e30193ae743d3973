"""Weights load alike by every route, and every mismatch is reported."""

import copy

import pytest
import torch
from conftest import backbone_from, relative_error
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from tiny_backbones import Classifier, finetuned, tiny
from tiny_models import ARCH
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.errors import SetupError
from mcbeit_mm.weights.fitting import FitSettings


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


def test_finetuned_models_of_the_authors_load(golden):
    g = golden('finetune')
    model = backbone_from(g.sizes, rel_pos='per_block', out_type='avg_featmap').eval()
    report = load_weights(model, g.group('state'))
    assert not (report.missing or report.fresh or report.resized)
    assert report.unused == ['head.weight', 'head.bias']
    assert relative_error(model(g['image'])[0], g['forward_features']) < 1e-5


def test_error_names_the_missing_tensors():
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
    assert model.fit_settings == FitSettings()  # the argument applied to that call only


def test_bare_backbone_weights_do_not_load_as_nothing_into_a_full_model():
    """MMEngine passes a child only the names under its prefix: here, none."""
    for load in (nn.Module.load_state_dict, mmengine_load_state_dict):
        with pytest.raises(SetupError, match='FitWeightsHook'):
            load(Classifier(finetuned()), tiny().state_dict(), strict=False)


def test_exact_weights_load_silently_with_any_loader(caplog, capsys):
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


def test_min_match_of_0_accepts_parts():
    model = Classifier(finetuned())
    model.backbone.fit_settings = FitSettings(min_match=0)
    model.load_state_dict({'head.fc.bias': torch.ones(5)}, strict=False)
    assert model.head.fc.bias.eq(1).all()


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
    with pytest.raises(SetupError, match='no checkpoint'):
        built(checkpoint=str(tmp_path / 'none.pth')).init_weights()


def test_init_cfg_with_other_initializers(tmp_path):
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
