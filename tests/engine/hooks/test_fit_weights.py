"""load_from accepts what load_weights accepts; resumed runs are not changed."""

import argparse

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import mcbeit_mm.weights.mmengine_loading  # noqa: F401
from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.engine.hooks.fit_weights import FitWeightsHook
from mcbeit_mm.errors import SetupError
from mcbeit_mm.weights.names import convert

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)


def vit(**kwargs) -> MCBEiTViT:
    return MCBEiTViT(ARCH, **(dict(img_size=64) | kwargs))


def pretrained() -> dict:
    model = vit()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict() | {'lm_head.weight': torch.ones(7, 32), 'lm_head.bias': torch.ones(7)}


class Classifier(BaseModel):
    def __init__(self, init_cfg=None):
        super().__init__()
        kind = dict(rel_pos='per_block', out_type='avg_featmap', img_size=96)
        self.backbone = vit(init_cfg=init_cfg, **kind)
        self.head = nn.Module()
        self.head.fc = nn.Linear(32, 5)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)


def loaded(model, tmp_path, path, *hooks, resume=False):
    runner = Runner(
        model, str(tmp_path / 'work'), load_from=str(path), resume=resume, custom_hooks=[*hooks],
        experiment_name=f'fit_{path.name}_{len(hooks)}_{resume}_{id(model)}', log_level='ERROR',
    )  # fmt: skip
    runner.call_hook('before_run')
    runner.load_or_resume()
    return runner


def assert_backbone(model, expected):
    for name, tensor in expected.backbone.state_dict().items():
        if not name.startswith('fc_norm.'):
            assert torch.equal(model.backbone.state_dict()[name], tensor), name


@pytest.mark.parametrize('to', ['mcbeit', 'timm', 'hf'])
@pytest.mark.parametrize('wrapper', ['model', 'module', 'state_dict', None])
def test_three_routes_give_the_same_backbone(tmp_path, to, wrapper):
    state, path = convert(pretrained(), to=to), tmp_path / 'x.pth'
    content = {wrapper: state, 'args': argparse.Namespace(lr=1.0)} if wrapper else state
    torch.save(content, path)
    expected = Classifier()
    load_weights(expected, path)
    model = Classifier(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert_backbone(model, expected)
    model = Classifier()
    loaded(model, tmp_path, path, FitWeightsHook())
    assert_backbone(model, expected)
    assert model.backbone.load_report.resized and not model.backbone.load_report.missing


def test_heads_and_moving_averages(tmp_path):
    from mmengine.hooks import EMAHook

    source = Classifier()
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'x.pth')
    model, ema = Classifier(), EMAHook()
    loaded(model, tmp_path, tmp_path / 'x.pth', ema, FitWeightsHook())
    for got in (model, ema.ema_model.module):
        for name, tensor in source.state_dict().items():
            assert torch.equal(got.state_dict()[name], tensor)


def test_threshold(tmp_path):
    state = {k: v for k, v in pretrained().items() if '.mlp.' not in k}
    torch.save(state, tmp_path / 'x.pth')
    with pytest.raises(SetupError, match='expected at least 90%'):
        loaded(Classifier(), tmp_path, tmp_path / 'x.pth', FitWeightsHook())
    model = Classifier()
    loaded(model, tmp_path, tmp_path / 'x.pth', FitWeightsHook(min_match=0.5))
    assert torch.equal(model.backbone.cls_token, state['cls_token'])


def test_without_the_hook_a_bare_checkpoint_is_refused(tmp_path):
    torch.save(pretrained(), tmp_path / 'x.pth')
    with pytest.raises(SetupError, match='FitWeightsHook'):
        loaded(Classifier(), tmp_path, tmp_path / 'x.pth')


def test_unreadable_weights_are_a_setup_error(tmp_path):
    torch.save({'epoch': 1}, tmp_path / 'x.pth')
    with pytest.raises(SetupError, match='No tensors'):
        loaded(Classifier(), tmp_path, tmp_path / 'x.pth', FitWeightsHook())


def test_other_models_and_resumed_runs_are_unchanged():
    hook, state = FitWeightsHook(), {'weight': torch.ones(2, 2)}
    runner = argparse.Namespace(model=nn.Linear(2, 2), _resume=False)
    checkpoint = {'state_dict': state}
    hook.before_run(runner)
    hook.after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'] is state
    runner = argparse.Namespace(model=Classifier(), _resume=True)
    hook.after_load_checkpoint(runner, checkpoint)
    assert checkpoint['state_dict'] is state


def test_a_test_requires_the_head_too(tmp_path):
    path = tmp_path / 'pretrained.pth'
    torch.save(pretrained(), path)
    with pytest.raises(SetupError, match='the checkpoint lacks head.fc.weight'):
        loaded(Classifier(), tmp_path, path, FitWeightsHook(complete=True))
    trained = Classifier()
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    tested = Classifier()
    loaded(tested, tmp_path, tmp_path / 'trained.pth', FitWeightsHook(complete=True))
    assert_backbone(tested, trained)
