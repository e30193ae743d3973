"""Images per second and the tokenizer's share."""

import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from mcbeit_mm.engine.hooks import ThroughputHook
from mcbeit_mm.engine.hooks.throughput import ForwardTimer


class Sleeper(nn.Module):
    def forward(self, x):
        time.sleep(0.02)
        return x


def test_forward_timer_adds_up_and_resets():
    module, x = Sleeper(), torch.zeros(1)
    timer = ForwardTimer(module)
    assert timer.pop() == 0.0
    start = time.perf_counter()
    module(x), module(x)
    time.sleep(0.05)
    # A busy machine may sleep longer, but time outside of the forward pass never counts.
    assert 0.04 <= timer.pop() <= time.perf_counter() - start - 0.05
    assert timer.pop() == 0.0
    timer.remove()
    module(x)
    assert timer.pop() == 0.0


@pytest.mark.gpu
def test_forward_timer_on_cuda():
    layer = nn.Linear(2048, 2048, device='cuda')
    timer = ForwardTimer(layer)
    x = torch.randn(2048, 2048, device='cuda')
    for _ in range(50):
        x = layer(x)
    assert 0 < timer.pop() < 10


def test_rates_follow_the_step_time():
    model = nn.Module()
    model.tokenizer = Sleeper()
    hub = MessageHub.get_instance('test_throughput')
    runner = SimpleNamespace(model=model, message_hub=hub, iter=0)
    hook = ThroughputHook(interval=2)
    hook.before_train(runner)
    batch = dict(data_samples=[None] * 8)
    for runner.iter, seconds in enumerate((0.5, 1.0)):
        start = time.perf_counter()
        model.tokenizer(torch.zeros(1))
        slept = time.perf_counter() - start
        hub.update_scalar('train/time', seconds)
        hook.after_train_iter(runner, runner.iter, batch)
        assert hub.get_scalar('train/images_per_s').current() == pytest.approx(8 / seconds)
    share = hub.get_scalar('train/tokenizer_share').current()
    assert 0.04 / 1.5 <= share < (0.04 + 10 * slept) / 1.5
    hook.after_train(runner)
    assert not model.tokenizer._forward_hooks and not model.tokenizer._forward_pre_hooks


def test_models_without_tokenizer_have_no_share():
    hub = MessageHub.get_instance('test_throughput_plain')
    runner = SimpleNamespace(model=nn.Module(), message_hub=hub, iter=9)
    hook = ThroughputHook()
    hook.before_train(runner)
    hub.update_scalar('train/time', 0.25)
    hook.after_train_iter(runner, 9, dict(data_samples=[None] * 4))
    assert hub.get_scalar('train/images_per_s').current() == pytest.approx(16)
    assert 'train/tokenizer_share' not in hub.log_scalars
