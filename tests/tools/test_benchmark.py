"""The benchmark: all sides do the same work, and its figures measure what their names say."""

import importlib
import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, relative_error

from mcbeit_mm import detection


@pytest.fixture
def module(monkeypatch):
    """module('loss') imports tools/benchmarks/loss.py."""
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return lambda name: importlib.import_module(f'benchmarks.{name}')


@pytest.mark.parametrize(
    ('topic', 'bound'), [('loss', 1e-6), ('tokenizer', 4e-2), ('step', 1e-5), ('downstream', 1e-5)]
)
def test_sides_compute_the_same(module, topic, bound, monkeypatch):
    monkeypatch.setattr(detection, 'BANDED_FROM', 256)  # the quick size
    for case in module(topic).cases('cpu', quick=True):
        found = {side: case.build(side, 'cpu', **case.settings)() for side in case.sides}
        for side in case.sides[1:]:
            exact = 1e-4 if 'bf16' not in side and topic == 'tokenizer' else bound
            assert relative_error(found[side], found['plain']) < exact, (case.name, side)


def test_full_sizes_are_those_of_the_titles(module):
    for device in ('cpu', 'cuda'):
        for case in module('loss').cases(device, quick=False):
            settings = case.settings
            assert f'B={settings["batch"]} N={settings["grid"] ** 2} V=8192' in case.name
            assert settings['dims'] == 768
    assert module('tokenizer').random_tokenizer(True, quick=False).vocab_size == 8192


@pytest.mark.parametrize('flags', ['avx2', 'avx2 avx512_bf16', 'amx_bf16'])
def test_half_precision_is_measured_where_it_is_fast(module, monkeypatch, tmp_path, flags):
    (tmp_path / 'cpuinfo').write_text(f'flags : {flags}')
    monkeypatch.setattr(module('measure'), 'CPU', tmp_path / 'cpuinfo')
    for device, fast in (('cpu', 'bf16' in flags), ('cuda', True)):
        kinds = {case.settings['kind'] for case in module('loss').cases(device, quick=False)}
        (case,) = module('tokenizer').cases(device, quick=False)
        assert ('bf16' in kinds) == ('ours, bf16' in case.sides) == fast


def test_ratios_are_taken_within_a_round(module, monkeypatch):
    measure = module('measure')
    order, speeds = [], {'plain': 2.0, 'fast': 1.0, 'ours': 0.5}

    def timed(run, device):
        side = run()
        order.append(side)
        return speeds[side] * (1 + len(order) // 3)  # the machine slows from round to round

    monkeypatch.setattr(measure, 'timed', timed)
    case = measure.Case(
        'c', lambda side, device: lambda: side, {}, tuple(speeds), 8, computes=False
    )
    result = measure.measure(case, 'cpu', 3, None)
    assert order[3:6] == ['plain', 'fast', 'ours']
    assert order[6:9] == ['fast', 'ours', 'plain']
    assert order[9:12] == ['ours', 'plain', 'fast']
    low, median, high = result['sides']['ours']['ratio']
    assert low <= median <= high and median == pytest.approx(0.25, rel=0.35)
    seconds = result['sides']['ours']['seconds'][1]
    assert result['sides']['ours']['per_second'] == pytest.approx(8 / seconds)


def test_flops_are_counted(module, monkeypatch):
    measure = module('measure')
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert measure.count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    own = torch.zeros(3, 7)
    assert measure.count_flops(lambda: own.addmm_(left, right)) == 2 * 3 * 5 * 7
    monkeypatch.setattr(measure, 'timed', lambda run, device: 0.5)
    assert measure.matmul_rate('cpu', torch.float32) == 2 * 2048**3 / 0.5


RESETS = """
import re
import numpy as np
np.ones(2**27, np.uint8)
open('/proc/self/clear_refs', 'w').write('5')
status = open('/proc/self/status').read()
peak, now = (int(re.search(rf'{key}:\\s+(\\d+) kB', status)[1]) for key in ('VmHWM', 'VmRSS'))
assert peak < now + 2**16, 'the earlier peak is still there'
"""
PEAK = """
import sys
import numpy as np
sys.path.insert(0, 'tools')
from benchmarks import measure
np.ones(2**27, np.uint8)  # an earlier peak does not count
print(measure.peak_memory(lambda: np.ones(2**26, np.uint8), 'cpu'))
"""


def run_fresh(script):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', script]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def can_reset_peak():
    """Whether the system can reset a process's peak memory; not all sandboxes can."""
    return run_fresh(RESETS).returncode == 0


def test_memory_is_counted_in_a_fresh_process(can_reset_peak):
    result = run_fresh(PEAK)
    assert result.returncode == 0, result.stderr
    peak = result.stdout.split()[-1]
    if can_reset_peak:
        assert 0.95 * 2**26 < int(peak) < 1.3 * 2**26
    else:  # no wrong figure
        assert peak == 'None'


def test_without_a_reset_there_is_no_peak(module, monkeypatch):
    measure = module('measure')
    monkeypatch.setattr(measure.Path, 'write_text', lambda *args: None)
    found = dict(VmHWM=2**30, VmRSS=2**20)
    monkeypatch.setattr(measure, 'process_memory', found.get)
    assert measure.peak_memory(lambda: None, 'cpu') is None
    found['VmRSS'] = 2**30
    assert measure.peak_memory(lambda: found.update(VmHWM=2**31), 'cpu') == 2**30


def test_table_says_which_goals_are_met(module):
    measure = module('measure')
    sides = dict(
        plain=dict(seconds=[1.0, 2.0, 3.0], ratio=[1, 1, 1], per_second=4.0, peak=2**30),
        ours=dict(seconds=[0.9, 1.0, 1.1], ratio=[0.4, 0.5, 0.6], per_second=8.0, peak=2**29),
    )
    result = dict(name='work', goal=0.5, memory_goal=0.1, sides=sides)
    row = measure.rows_of(result)[1]
    assert row[1:5] == ('ours', '1000', '8', '0.50 (0.40-0.60) [goal 0.5: met]')
    assert row[5:7] == ('512', '0.50 [goal 0.1: missed]')
    markdown = measure.as_markdown([result], dict(torch='2.6'))
    assert '| work | plain | 2000 | 4 | 1 | 1024 |  |' in markdown and 'torch 2.6' in markdown


@pytest.fixture
def in_process(module, monkeypatch, capsys):
    """Run commands of the script in this process; returns their standard output."""

    def run(command, **kwargs):
        words = [str(word) for word in command if word != sys.executable]
        monkeypatch.setattr(sys, 'argv', words)
        capsys.readouterr()
        runpy.run_path(words[0], run_name='__main__')
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out)

    monkeypatch.setattr(module('measure').subprocess, 'run', run)
    return run


def test_script_measures_time_and_memory(module, in_process, tmp_path, monkeypatch):
    measure = module('measure')
    monkeypatch.setattr(measure, 'matmul_rate', lambda device, dtype: 1e11)
    monkeypatch.setattr(measure, 'peak_memory', lambda once, device: len(peaks))
    peaks = []

    def peak_of_child(*args):
        peaks.append(args)
        return original(*args)

    original = measure.peak_of_child
    monkeypatch.setattr(measure, 'peak_of_child', peak_of_child)
    files = [tmp_path / name for name in ('a.json', 'a.md')]
    words = [ROOT / 'tools/benchmark.py', 'loss', '--quick', '--repeats', '2', '--device', 'cpu']
    shown = in_process([*words, '--json', files[0], '--markdown', files[1]]).stdout
    content = json.loads(files[0].read_text())
    (case,) = content['results']
    for found in case['sides'].values():
        assert found['seconds'][1] > 0 and found['gflop'] > 0 and found['share'] > 0
    assert case['sides']['ours']['gflop'] < case['sides']['plain']['gflop']  # masked rows only
    assert peaks == [('loss', 0, side, 'cpu', True) for side in ('plain', 'ours')]
    assert [found['peak'] for found in case['sides'].values()] == [1, 2]
    assert content['environment']['torch'] == torch.__version__
    assert content['environment']['torch.float32 matmul'] == '0.1 TFLOP/s'
    assert '| ours |' in shown and shown == files[1].read_text()


def test_script_answers_at_once():
    command = [sys.executable, ROOT / 'tools/benchmark.py', '--help']
    assert b'--markdown' in subprocess.run(command, capture_output=True, timeout=10).stdout
