"""Import time of the package and start-up time of a script."""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.measure import ROOT, Case, Fact, timed

CODE = {
    'plain': 'import torch, mmengine.runner, mmpretrain.models, mmpretrain.datasets',
    'ours': 'import mcbeit_mm',
}


def cases(device: str, quick: bool) -> list[Case]:
    """The package against the libraries that it builds on."""
    return [Case('import', build, {}, computes=False)]


def build(side: str, device: str) -> Callable[[], None]:
    """Start Python and import."""
    return lambda: python('-c', CODE[side])


def facts(device: str, quick: bool) -> list[Fact]:
    """Time of the training script's --help, which should not import torch."""
    times = [timed(lambda: python('tools/train.py', '--help'), 'cpu') for _ in range(6)]
    value = round(statistics.median(times[1:]), 3)  # the first warms up
    return [Fact('python tools/train.py --help', value, 's', 'median of 5; goal 2')]


def python(*arguments: str) -> None:
    """Run Python in the repository."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    env = dict(os.environ, PYTHONPATH=path)
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
