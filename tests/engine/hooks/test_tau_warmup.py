"""Tau warms up as a function of the epoch."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from torch import nn

from mcbeit_mm.engine.hooks import TauWarmupHook
from mcbeit_mm.head import MCBEiTHead


def test_tau_moves_and_returns_to_the_heads_own():
    model = nn.Module()
    model.head = MCBEiTHead(8, 16, tau=4.0)
    hub = MessageHub.get_instance('test_tau')
    runner = SimpleNamespace(model=model, epoch=0, message_hub=hub)
    hook = TauWarmupHook(tau_start=1.0, warmup_epochs=4)
    hook.before_train(runner)
    seen = []
    for runner.epoch in (0, 1, 2, 3, 7):
        hook.before_train_epoch(runner)
        hook.before_train_iter(runner, 0)
        seen.append(model.head.multi_choice.tau)
    assert seen == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert hub.get_scalar('train/tau').current() == 4.0
    hook.after_train(runner)
    assert model.head.multi_choice.tau == 4.0


def test_impossible_start():
    with pytest.raises(ValueError, match='tau_start > 0, got 0'):
        TauWarmupHook(tau_start=0)
