"""Skip the seconds that MMEngine's Runner spends on formatting its logs."""

import itertools
import time
import types
from functools import cache

from mmengine.dataset import base_dataset
from mmengine.runner import runner
from yapf.yapflib import yapf_api

_environment = cache(runner.collect_env)  # runs gcc and nvcc
_seconds = itertools.count(time.time())


def speed_up_runner(monkeypatch) -> None:
    """Skip yapf, which formats the config four times per run, and garbage collection in each data
    set; collect the environment once.

    MMEngine names a run after its start in seconds, so each run gets a different one.
    """
    monkeypatch.setattr(yapf_api, 'FormatCode', lambda text, **kwargs: (text, False))
    monkeypatch.setattr(base_dataset, 'gc', types.SimpleNamespace(collect=lambda: None))
    monkeypatch.setattr(runner, 'collect_env', _environment)
    clock = types.SimpleNamespace(**vars(time) | dict(time=lambda: next(_seconds)))
    monkeypatch.setattr(runner, 'time', clock)
