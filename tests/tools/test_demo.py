"""The demo driver: its commands exist, its progress lines are short, a failure is shown."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['demo'] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_stages_name_files_that_exist(demo, tmp_path):
    stages = demo.stages(tmp_path / 'out', tmp_path / 'data', 'fp32')
    names = 'data tokenizer pretrain evaluate classification segmentation detection report'
    assert [stage.name for stage in stages] == names.split()
    for stage in stages:
        for tool, *words in stage.commands.values():
            assert (ROOT / 'tools' / tool).is_file()
            for word in words:
                if word.endswith('.py'):
                    assert Path(word).is_file()
    assert sum(stage.minutes for stage in stages) <= 13


@pytest.mark.parametrize('task', ['classification', 'segmentation', 'detection'])
def test_transfers_differ_in_the_initial_weights_only(demo, tmp_path, monkeypatch, task):
    todo = {stage.name: stage for stage in demo.stages(tmp_path, tmp_path / 'data', 'fp32')}
    commands = todo[task].commands
    pretrained, scratch = commands['pretrained'], commands['scratch']
    assert scratch[: len(pretrained) - 1] == pretrained[:-1]  # but for the work dir
    assert scratch[len(pretrained) :] == ['--cfg-options', 'model.backbone.init_cfg=None']
    for key, value in todo[task].env.items():
        monkeypatch.setenv(key, value)
    cfg = Config.fromfile(next(word for word in pretrained[1:] if word.endswith('.py')))
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/data/{task}'
    before = next(w for w in todo['pretrain'].commands[''][1:] if w.endswith('.py'))
    pretraining = Config.fromfile(before)
    weights = cfg.model.backbone.init_cfg.checkpoint
    assert weights in todo['pretrain'].commands['']  # the work dir of pretraining
    for key in ('arch', 'img_size', 'layer_scale_init_value'):
        assert cfg.model.backbone[key] == pretraining.model.backbone[key]
    assert pretrained[-1] in todo['report'].commands['']
    assert scratch[scratch.index('--work-dir') + 1] in todo['report'].commands['']


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
            '11/23 - mmengine - INFO - Epoch(val) [3][7/7]    coco/bbox_mAP: 0.1230  time: 0.1',
            'validation 7/7  bbox_mAP 0.1230',
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


def python(tmp_path, name, code):
    """A script as a tool of the demo, by its path from tools/."""
    file = tmp_path / name
    file.write_text(code)
    return [os.path.relpath(file, ROOT / 'tools')]


def test_a_failing_stage_shows_its_last_words(demo, tmp_path):
    commands = {'': ['train.py', str(tmp_path / 'nothing.py')]}
    stage = demo.Stage('broken', '', commands, 1.0, dict(PYTHONPATH=str(ROOT)))
    with pytest.raises(SystemExit, match=r"(?s)no config file .*'broken' failed"):
        demo.run(stage, tmp_path)


def test_commands_run_side_by_side_and_share_the_cores(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('os.cpu_count', lambda: 6)
    meet = """
import os, pathlib, sys, time
mine, other = (pathlib.Path(sys.argv[0]).with_name(name) for name in sys.argv[1:])
mine.touch()
while not other.exists():  # for ever, unless the other one runs too
    time.sleep(0.01)
print(sys.argv[1], 'has', os.environ['OMP_NUM_THREADS'], os.environ['GIVEN'])
"""
    tool = python(tmp_path, 'meet.py', meet)
    commands = {'one': [*tool, 'a', 'b'], 'two': [*tool, 'b', 'a']}
    demo.run(demo.Stage('meeting', '', commands, 1.0, dict(GIVEN='42')), tmp_path)
    shown = capsys.readouterr().out
    assert 'one: a has 3 42' in shown and 'two: b has 3 42' in shown
    assert (tmp_path / 'meeting-one.log').read_text() == 'a has 3 42\n'


def test_one_failure_ends_the_others(demo, tmp_path):
    wait = python(tmp_path, 'wait.py', 'import time\ntime.sleep(300)')
    fail = python(tmp_path, 'fail.py', 'raise SystemExit("out of luck")')
    stage = demo.Stage('pair', '', {'long': wait, 'short': fail}, 1.0)
    start = time.monotonic()
    with pytest.raises(SystemExit, match=r"(?s)out of luck.*'pair short' failed.*pair-short.log"):
        demo.run(stage, tmp_path)
    assert time.monotonic() - start < 200


def test_half_a_line_waits_for_its_end(demo, tmp_path):
    file = tmp_path / 'log'
    file.write_text('one\ntw')
    with file.open() as log:
        assert list(demo._whole_lines(log)) == ['one\n']
        with file.open('a') as more:
            more.write('o\n')
        assert list(demo._whole_lines(log)) == ['two\n']


def test_progress_of_two_jobs_is_one_line_of_a_terminal(demo, monkeypatch, capsys):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    progress = demo.Progress(['a', 'b'], training=True)
    progress.tell('a', 'Iter(train) [ 80/900]  loss: 0.5')
    progress.tell('b', 'Iter(train) [ 70/900]  loss: 0.25')
    progress.tell('b', 'saving a checkpoint')
    last = capsys.readouterr().out.split('\r')[-1]
    assert 'a: step 80/900  loss 0.5' in last and '| b: step 70/900  loss 0.25' in last
