"""tools/train.py and tools/test.py as commands; what they do is tested in engine/test_run.py."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_train import write_tiny_run

from mcbeit_mm.weights.reading import read_checkpoint


def command(*words: str, first: str = '', timeout: float = 300) -> subprocess.CompletedProcess:
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    modules = os.pathsep.join(filter(None, [first, str(ROOT)]))
    env = dict(os.environ, PYTHONPATH=modules, OMP_NUM_THREADS='1', PATH=path)
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


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_a_mistake_ends_in_one_line(tool, monkeypatch, capsys):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    main = runpy.run_path(str(ROOT / f'tools/{tool}.py'))['main']
    words = ['configs/nothing.py', 'x.pth'][: 1 + (tool == 'test')]
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *words, '--local-rank', '1'])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == 'error: no config file configs/nothing.py\n'
    assert os.environ.pop('LOCAL_RANK') == '1'  # for launchers that pass it as an option


def test_two_processes_over_gloo_in_bf16_with_accumulation(tmp_path):
    """Without mmdet, which is optional and takes two seconds to import."""
    folder = write_tiny_run(tmp_path)
    (tmp_path / 'without/mmdet').mkdir(parents=True)
    (tmp_path / 'without/mmdet/__init__.py').write_text("raise ImportError('not installed')")
    out = command(
        'bash', 'tools/dist_train.sh', str(folder / 'tiny.py'), '2', '--work-dir',
        str(folder / 'work'), '--precision', 'bf16', '--cfg-options', 'train_cfg.max_epochs=2',
        'param_scheduler.0.end=2', 'train_dataloader.num_workers=0',
        'optim_wrapper.accumulative_counts=2', first=str(tmp_path / 'without'),
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    (scalars,) = (folder / 'work').glob('*/vis_data/scalars.json')
    log = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert len(log) == 4  # half as many steps: each process sees half of the images
    assert log[-1]['kl'] < log[0]['kl']
    state = read_checkpoint(folder / 'work/epoch_2.pth')['state_dict']
    assert {name.split('.')[0] for name in state} == {'backbone', 'head'}
