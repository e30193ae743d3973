"""The timer counts only what it is asked to."""

import copy
import time

import pytest
import torch

from mcbeit_mm.timer import DeviceTimer

CPU = torch.device('cpu')


def test_adds_up_and_resets():
    timer = DeviceTimer()
    with timer.measure(CPU):
        time.sleep(0.01)
    assert timer.pop() == 0.0  # idle until enabled
    timer.enabled = True
    start = time.perf_counter()
    for _ in range(2):
        with timer.measure(CPU):
            time.sleep(0.02)
    time.sleep(0.05)
    # A busy machine may sleep longer, but what lies outside of the blocks never counts.
    assert 0.04 <= timer.pop() <= time.perf_counter() - start - 0.05
    assert timer.pop() == 0.0
    assert copy.deepcopy(timer).pop() == 0.0


@pytest.mark.gpu
def test_cuda_events():
    timer = DeviceTimer()
    timer.enabled = True
    device = torch.device('cuda')
    x = torch.randn(2048, 2048, device=device)
    with timer.measure(device):
        for _ in range(50):
            x = x @ x / 2048
    assert 0 < timer.pop() < 10
