"""Time until the package is there, and until a script answers."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Case, Fact

ROOT = Path(__file__).parents[2]
CODE = {
    'plain': 'import torch, mmengine.runner, mmpretrain.models, mmpretrain.datasets',
    'ours': 'import mcbeit_mm',
}


def cases(device: str, quick: bool) -> list[Case]:
    """The package against the libraries that it stands on."""
    return [Case('import', build, {}, items=1, unit='imports', flops=False, memory=False)]


def build(side: str, device: str) -> Callable[[], None]:
    """Start Python and import."""
    return lambda: started('-c', CODE[side])


def facts(device: str, quick: bool) -> list[Fact]:
    """The help of the training script, which should not wait for torch."""
    seconds = []
    for _ in range(2 if quick else 6):  # the first warms up
        start = time.perf_counter()
        started('tools/train.py', '--help')
        seconds.append(time.perf_counter() - start)
    value = round(statistics.median(seconds[1:]), 3)
    return [Fact('python tools/train.py --help', value, 's', 'median of 5; goal 2')]


def started(*arguments: str) -> None:
    """Run Python in the repository."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
