"""Every config trains a few steps here."""

import pytest
from fast_runner import speed_up_runner


@pytest.fixture(autouse=True)
def _fast_runner(monkeypatch):
    speed_up_runner(monkeypatch)
