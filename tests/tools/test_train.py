"""tools/train.py and tools/test.py as commands; what they do is tested in engine/test_run.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_train import write_tiny_run

from mcbeit_mm.weights.reading import read_checkpoint


def command(*words: str, timeout: float = 300) -> subprocess.CompletedProcess:
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PATH=path)
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    'tool', ['train.py', 'test.py', 'config_diff.py', 'estimate_memory.py', 'evaluate_features.py',
             'make_demo_data.py', 'doctor.py'],
)  # fmt: skip
def test_help_is_quick(tool):
    start = time.perf_counter()
    out = command(sys.executable, f'tools/{tool}', '--help')
    assert out.returncode == 0 and 'usage' in out.stdout
    assert time.perf_counter() - start < 2


def test_a_mistake_ends_in_one_line():
    out = command(sys.executable, 'tools/test.py', 'configs/nothing.py', 'x.pth')
    assert out.returncode == 2 and 'Traceback' not in out.stderr
    assert out.stderr.splitlines()[-1] == 'error: no config file configs/nothing.py'


def test_two_processes_over_gloo_in_bf16_with_accumulation(tmp_path):
    folder = write_tiny_run(tmp_path)
    out = command(
        'bash', 'tools/dist_train.sh', str(folder / 'tiny.py'), '2', '--work-dir',
        str(folder / 'work'), '--precision', 'bf16', '--cfg-options', 'train_cfg.max_epochs=2',
        'param_scheduler.0.end=2', 'train_dataloader.num_workers=0',
        'optim_wrapper.accumulative_counts=2',
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    (scalars,) = (folder / 'work').glob('*/vis_data/scalars.json')
    log = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert len(log) == 4  # half as many steps: each process sees half of the images
    assert log[-1]['kl'] < log[0]['kl']
    state = read_checkpoint(folder / 'work/epoch_2.pth')['state_dict']
    assert {name.split('.')[0] for name in state} == {'backbone', 'head'}
