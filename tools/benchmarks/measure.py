"""Measuring several ways to do the same work side by side: time, peak memory, FLOPs.

All ways run in one process, once per round, in an order that rotates from round to round, so that
a slow moment of the machine hits them alike. What counts is the ratio within a round.
"""

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
SCRIPT = Path(__file__).parents[1] / 'benchmark.py'
CPU = Path('/proc/cpuinfo')


class Case(NamedTuple):
    """A row of the table: one piece of work and the ways (`sides`) to do it.

    `build(side, device, **settings)` returns a callable that does it once. Ratios are relative to
    the first side; `goal` and `memory_goal` are upper bounds for the last one's.
    """

    name: str
    build: Callable[..., Callable[[], object]]
    settings: dict
    sides: tuple[str, ...] = ('plain', 'ours')
    items: int = 1
    unit: str = 'images'
    goal: float | None = None
    memory_goal: float | None = None
    flops: bool = True
    dtype: torch.dtype = torch.float32  # of its matrix products
    memory: bool = True
    rounds: int | None = None  # at most


class Fact(NamedTuple):
    """Something measured beside the times."""

    name: str
    value: float | str
    unit: str = ''
    how: str = ''


def measure(case: Case, device: str, repeats: int, rate: float | None) -> dict:
    """Time all sides of a case.

    Args:
        repeats: rounds, after one to warm up.
        rate: matrix products' FLOP/s in the case's type, see `matmul_rate`.

    Returns:
        Per side: `seconds` and `ratio` as [lower quartile, median, upper quartile], `per_second`,
        and for counted FLOPs `gflop` and their `share` of the rate.
    """
    runs = {side: case.build(side, device, **case.settings) for side in case.sides}
    for run in runs.values():
        timed(run, device)
    rounds = []
    for number in range(min(repeats, case.rounds or repeats)):
        turn = number % len(case.sides)
        order = case.sides[turn:] + case.sides[:turn]
        rounds.append({side: timed(runs[side], device) for side in order})
    sides = {}
    for side, run in runs.items():
        seconds = quartiles([times[side] for times in rounds])
        ratio = quartiles([times[side] / times[case.sides[0]] for times in rounds])
        result = dict(seconds=seconds, ratio=ratio, per_second=case.items / seconds[1])
        if case.flops:
            flops = count_flops(run)
            result |= dict(gflop=flops / 1e9)
            if rate:
                result['share'] = flops / seconds[1] / rate
        sides[side] = result
    return dict(
        name=case.name,
        unit=case.unit,
        goal=case.goal,
        memory_goal=case.memory_goal,
        settings=case.settings,
        sides=sides,
    )


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of one repetition, the device's work included."""
    gc.collect()
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method='inclusive')


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products, convolutions and attentions of one repetition."""
    in_place = {torch.ops.aten.addmm_: _addmm_flops}  # torch leaves it out
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    # The counter does not see into compiled code.
    with torch.compiler.set_stance('force_eager'), counter:
        run()
    return counter.get_total_flops()


def _addmm_flops(own: torch.Size, left: torch.Size, right: torch.Size, **kwargs) -> int:
    return 2 * left.numel() * right[1]


def fast_bf16(device: str) -> bool:
    """Whether bfloat16 is multiplied in hardware: other CPUs take 20 times the time of fp32."""
    known = CPU.read_text() if device == 'cpu' and CPU.exists() else ''
    return device != 'cpu' or 'amx_bf16' in known or 'avx512_bf16' in known


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """The most FLOP/s of a square matrix product, over two sizes and five repetitions of each."""
    best = 0.0
    for size in (4096, 8192) if device == 'cuda' else (1024, 2048):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = [timed(lambda a=left, b=right: a @ b, device) for _ in range(6)]
        best = max(best, 2 * size**3 / min(seconds[1:]))
    return best


def peak_memory(run: Callable[[], object], device: str) -> int | None:
    """Bytes that one repetition takes beyond what is held before it.

    On a CPU it is the growth of the process, which must be fresh: memory that it has freed and
    kept, or gives back meanwhile, would hide what the repetition takes. None where the system does
    not tell.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path('/proc/self/clear_refs').write_text('5')  # resets the high-water mark
        before = _status('VmHWM')
        if before > _status('VmRSS') + 16 * MIB:  # some sandboxes ignore the reset
            return None
        run()
        return _status('VmHWM') - before
    except OSError:
        return None


def peak_of_child(topic: str, case: int, side: str, device: str, quick: bool) -> int | None:
    """`peak_memory` of a side in a process of its own."""
    command = [sys.executable, str(SCRIPT), topic, '--device', device, '--child', str(case), side]
    result = subprocess.run(
        command + ['--quick'] * quick, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def environment(device: str) -> dict:
    """Where the figures come from."""
    processor = platform.processor() or platform.machine()
    if CPU.exists():
        lines = CPU.read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        processor = names[0] if names else processor
    found = dict(
        date=date.today().isoformat(),
        processor=processor,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    if device == 'cuda':
        found |= dict(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)
    return found


def synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def _status(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {field}')
