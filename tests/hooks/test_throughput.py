"""Images per second and the tokenizer's share."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from torch import nn

from mcbeit_mm.hooks import ThroughputHook


class Timer:
    enabled = False

    def pop(self):
        return 0.3


def test_rates_follow_the_step_time():
    model = nn.Module()
    model.tokenizer_timer = Timer()
    hub = MessageHub.get_instance('test_throughput')
    runner = SimpleNamespace(model=model, message_hub=hub, iter=0)
    hook = ThroughputHook(interval=2)
    hook.before_train(runner)
    assert model.tokenizer_timer.enabled
    batch = dict(data_samples=[None] * 8)
    for runner.iter, seconds in enumerate((0.5, 1.0)):
        hub.update_scalar('train/time', seconds)
        hook.after_train_iter(runner, runner.iter, batch)
        assert hub.get_scalar('train/images_per_s').current() == pytest.approx(8 / seconds)
    assert hub.get_scalar('train/tokenizer_share').current() == pytest.approx(0.3 / 1.5)


def test_models_without_tokenizer_have_no_share():
    hub = MessageHub.get_instance('test_throughput_plain')
    runner = SimpleNamespace(model=nn.Module(), message_hub=hub, iter=9)
    hook = ThroughputHook()
    hook.before_train(runner)
    hub.update_scalar('train/time', 0.25)
    hook.after_train_iter(runner, 9, dict(data_samples=[None] * 4))
    assert hub.get_scalar('train/images_per_s').current() == pytest.approx(16)
    assert 'train/tokenizer_share' not in hub.log_scalars
