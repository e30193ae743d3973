"""The demo driver: its commands exist, its progress lines are short, a failure is shown."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['demo'] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_stages_name_files_that_exist(demo, tmp_path):
    stages = demo.stages(tmp_path / 'out', tmp_path / 'data', 'fp32')
    assert [stage.name for stage in stages] == [
        'data',
        'tokenizer',
        'pretrain',
        'evaluate',
        'report',
    ]
    for stage in stages:
        assert (ROOT / 'tools' / stage.command[0]).is_file()
        for word in stage.command[1:]:
            if word.endswith('.py'):
                assert Path(word).is_file()
    assert sum(stage.minutes for stage in stages) <= 13


@pytest.mark.parametrize(
    'cuda, flags, expected',
    [(True, '', 'bf16'), (False, 'avx2 amx_bf16', 'bf16'), (False, 'avx2', 'fp32')],
)
def test_bf16_only_where_the_hardware_has_it(demo, tmp_path, monkeypatch, cuda, flags, expected):
    (tmp_path / 'cpuinfo').write_text(f'flags: {flags}')
    monkeypatch.setattr('torch.cuda.is_available', lambda: cuda)
    assert demo.precision(tmp_path / 'cpuinfo') == expected


@pytest.mark.parametrize(
    'line, expected',
    [
        (
            '11/23 - mmengine - INFO - Epoch(train)  [ 7][ 20/31]  lr: 1.0e-03  eta: 0:02:31  '
            'time: 0.2  loss: 4.5  kl: 0.21  mlm_acc: 0.12',
            'epoch 7, step 20/31  eta 0:02:31  kl 0.21  mlm_acc 0.12',
        ),
        (
            '11/23 - mmengine - INFO - Iter(train) [ 80/900]  lr: 2e-03  eta: 0:01:00  rec: 0.25',
            'step 80/900  eta 0:01:00  rec 0.25',
        ),
        ('11/23 - mmengine - INFO - Saving checkpoint at 40 epochs', None),
    ],
)
def test_progress_lines(demo, line, expected):
    assert demo.short(line) == expected


def test_a_failing_stage_shows_its_last_words(demo, tmp_path):
    stage = demo.Stage('broken', '', ['train.py', str(tmp_path / 'nothing.py')], 1.0)
    with pytest.raises(SystemExit, match=r"(?s)no config file .*'broken' failed"):
        demo.run(stage, tmp_path / 'log', dict(os.environ, PYTHONPATH=str(ROOT)))
