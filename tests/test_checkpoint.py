"""load_weights accepts weights of any naming and precision, and heads that fit."""

import copy

import pytest
import torch
from tiny_backbones import Classifier, finetuned, tiny
from torch import nn

from mcbeit_mm.checkpoint import convert, load_weights
from mcbeit_mm.errors import SetupError


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


def test_models_without_exactly_one_backbone():
    with pytest.raises(SetupError, match='got'):
        load_weights(nn.Linear(2, 2), {'weight': torch.ones(2, 2)})
    pair = nn.ModuleDict(dict(a=tiny(), b=tiny()))
    with pytest.raises(SetupError, match=r"\['a', 'b'\]"):
        load_weights(pair, tiny().state_dict())


def test_urls_are_refused():
    with pytest.raises(ValueError, match='https://x.org/w.pth is a URL'):
        load_weights(tiny(), 'https://x.org/w.pth')
