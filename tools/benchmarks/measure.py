"""Time, peak memory and FLOPs of several ways to do the same work, side by side.

All sides run in one process, once per round, in an order that rotates from round to round, so that
a slow moment of the machine affects them alike. What counts is the ratio within a round.
"""

import gc
import json
import platform
import re
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
ROOT = Path(__file__).parents[2]
CPU = Path('/proc/cpuinfo')
HEAD = ('case', 'side', 'ms', 'per s', 'time ratio', 'MiB', 'memory ratio', 'GFLOP', '% of matmul')


class Case(NamedTuple):
    """One piece of work and the ways (`sides`) to do it.

    `build(side, device, **settings)` returns a callable that does it once. Ratios are relative to
    the first side; `goal` and `memory_goal` are upper bounds for the last one's.
    """

    name: str
    build: Callable[..., Callable[[], object]]
    settings: dict
    sides: tuple[str, ...] = ('plain', 'ours')
    items: int = 1
    goal: float | None = None
    memory_goal: float | None = None
    computes: bool = True  # FLOPs and memory are counted
    dtype: torch.dtype = torch.float32  # of its matrix products
    rounds: int | None = None  # at most


def run(cases: dict[str, list[Case]], device: str, quick: bool, repeats: int) -> tuple[list, dict]:
    """Return results of all cases per topic, and the matmul rates they were compared with."""
    results, rates = [], {}
    for topic, listed in cases.items():
        for index, case in enumerate(listed):
            print(f'{case.name} ...', file=sys.stderr, flush=True)
            if quick:  # too small for goals
                case = case._replace(goal=None, memory_goal=None)
            if case.computes and case.dtype not in rates:
                rates[case.dtype] = matmul_rate(device, case.dtype)
            result = measure(case, device, repeats, rates.get(case.dtype))
            if case.computes:
                for side, found in result['sides'].items():
                    found['peak'] = peak_of_child(topic, index, side, device, quick)
            results.append(result)
    return results, {
        f'{dtype} matmul': f'{rate / 1e12:.3g} TFLOP/s' for dtype, rate in rates.items()
    }


def measure(case: Case, device: str, repeats: int, rate: float | None) -> dict:
    """Time all sides of a case in `repeats` rounds, after one to warm up.

    Args:
        rate: FLOP/s of matrix products in the case's type, see `matmul_rate`.

    Returns:
        Per side: `seconds` and `ratio` as [lower quartile, median, upper quartile], `per_second`,
        and for counted FLOPs `gflop` and their `share` of the rate.
    """
    runs = {side: case.build(side, device, **case.settings) for side in case.sides}
    for once in runs.values():
        timed(once, device)
    rounds = []
    for index in range(min(repeats, case.rounds or repeats)):
        turn = index % len(case.sides)
        order = case.sides[turn:] + case.sides[:turn]
        rounds.append({side: timed(runs[side], device) for side in order})
    sides = {}
    for side, once in runs.items():
        seconds = quartiles([times[side] for times in rounds])
        ratio = quartiles([times[side] / times[case.sides[0]] for times in rounds])
        sides[side] = dict(seconds=seconds, ratio=ratio, per_second=case.items / seconds[1])
        if case.computes:
            flops = count_flops(once)
            sides[side] |= dict(gflop=flops / 1e9, share=flops / seconds[1] / rate)
    goals = dict(goal=case.goal, memory_goal=case.memory_goal)
    return dict(name=case.name, settings=case.settings, sides=sides, **goals)


def timed(once: Callable[[], object], device: str) -> float:
    """Seconds of one repetition, including the device's work."""
    gc.collect()
    synchronize = torch.cuda.synchronize if device == 'cuda' else lambda: None
    synchronize()
    start = time.perf_counter()
    once()
    synchronize()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method='inclusive')


def count_flops(once: Callable[[], object]) -> int:
    """FLOPs of the matrix products, convolutions and attentions of one repetition."""

    def addmm_flops(own: torch.Size, left: torch.Size, right: torch.Size, **kwargs) -> int:
        return 2 * left.numel() * right[1]

    in_place = {torch.ops.aten.addmm_: addmm_flops}  # missing in torch
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    # The counter does not see into compiled code.
    with torch.compiler.set_stance('force_eager'), counter:
        once()
    return counter.get_total_flops()


def fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16: other CPUs take 20 times the time of fp32."""
    known = CPU.read_text() if device == 'cpu' and CPU.exists() else ''
    return device != 'cpu' or 'amx_bf16' in known or 'avx512_bf16' in known


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Highest FLOP/s of a square matrix product, over two sizes and five repetitions of each."""
    best = 0.0
    for size in (4096, 8192) if device == 'cuda' else (1024, 2048):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = [timed(lambda a=left, b=right: a @ b, device) for _ in range(6)]
        best = max(best, 2 * size**3 / min(seconds[1:]))
    return best


def peak_memory(once: Callable[[], object], device: str) -> int | None:
    """Bytes that one repetition allocates beyond what was allocated before.

    On a CPU, the growth of the process; the process must be fresh, since memory that it freed but
    kept would hide allocations. None where the system cannot reset the peak.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path('/proc/self/clear_refs').write_text('5')  # resets the high-water mark
        before = process_memory('VmHWM')
        if before > process_memory('VmRSS') + 16 * MIB:  # some sandboxes ignore the reset
            return None
        once()
        return process_memory('VmHWM') - before
    except OSError:
        return None


def process_memory(field: str) -> int:
    """Bytes of a field in /proc/self/status."""
    found = re.search(rf'^{field}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.MULTILINE)
    if not found:
        raise OSError(f'/proc/self/status has no {field}')
    return int(found[1]) * 1024


def peak_of_child(topic: str, case: int, side: str, device: str, quick: bool) -> int | None:
    """`peak_memory` of a side in a process of its own."""
    words = [ROOT / 'tools/benchmark.py', topic, '--device', device, '--child', str(case), side]
    command = [sys.executable, *words, *(['--quick'] if quick else [])]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def environment(device: str) -> dict:
    """Date, hardware and versions."""
    names = re.findall(r'model name\s*: (.+)', CPU.read_text() if CPU.exists() else '')
    found = dict(
        date=date.today().isoformat(),
        processor=names[0] if names else platform.machine(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    return found | (dict(gpu=torch.cuda.get_device_name()) if device == 'cuda' else {})


def as_markdown(results: list[dict], environment: dict) -> str:
    """Format the environment and a table with a row per side."""
    rows = [HEAD, ('---',) * len(HEAD), *(row for result in results for row in rows_of(result))]
    title = ', '.join(f'{name} {value}' for name, value in environment.items())
    return '\n'.join([title, '', *(f'| {" | ".join(row)} |' for row in rows)]) + '\n'


def rows_of(result: dict) -> list[tuple[str, ...]]:
    """Medians, ratios to the first side with quartiles, and whether the last side meets goals."""
    rows, (first, *_, last) = [], result['sides']
    for side, found in result['sides'].items():
        low, median, high = found['ratio']
        ratio = '1' if side == first else f'{median:.2f} ({low:.2f}-{high:.2f})'
        peak, plain, memory = found.get('peak'), result['sides'][first].get('peak'), ''
        if side != first and peak is not None and plain:
            memory = f'{peak / plain:.2f}'
        if side == last:
            ratio += verdict(median, result['goal'])
            memory += verdict(peak / plain, result['memory_goal']) if memory else ''
        name = result['name'] if side == first else ''
        speed = number(found['seconds'][1], 1000), number(found['per_second'])
        flops = number(found.get('gflop')), number(found.get('share'), 100)
        rows.append((name, side, *speed, ratio, number(peak, 1 / MIB), memory, *flops))
    return rows


def number(value: float | None, scale: float = 1) -> str:
    return '' if value is None else f'{value * scale:.4g}'


def verdict(value: float, goal: float | None) -> str:
    if goal is None:
        return ''
    return f' [goal {goal:g}: {"met" if value <= goal else "missed"}]'
