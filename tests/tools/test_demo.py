"""The demo: its commands exist, progress is shown, a failure stops all stages and is explained."""

import importlib.util
import os
import time

import pytest
from conftest import ROOT
from mmengine.config import Config


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(words):
    return next(word for word in words[1:] if str(word).endswith('.py'))


def test_stages_name_files_that_exist(demo, tmp_path):
    commands = demo.commands(tmp_path / 'out', tmp_path / 'data', 'fp32')
    assert list(commands) == list(demo.STAGES)
    for stage in commands.values():
        for tool, *words in stage.values():
            assert (ROOT / 'tools' / tool).is_file()
            assert all(word.is_file() for word in words if str(word).endswith('.py'))


@pytest.mark.parametrize('task', ['classification', 'segmentation', 'detection'])
def test_transfers_differ_in_the_initial_weights_only(demo, tmp_path, monkeypatch, task):
    commands = demo.commands(tmp_path, tmp_path / 'data', 'fp32')
    pretrained, scratch = commands[task]['pretrained'], commands[task]['scratch']
    assert scratch[: len(pretrained) - 1] == pretrained[:-1]  # up to the work dir
    assert scratch[len(pretrained) :] == ['--cfg-options', 'model.backbone.init_cfg=None']
    for key, value in demo.environment(task, tmp_path, tmp_path / 'data').items():
        monkeypatch.setenv(key, value)
    cfg = Config.fromfile(config_of(pretrained))
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/data/{task}'
    pretrain, report = commands['pretrain'][''], commands['report']['']
    pretraining = Config.fromfile(config_of(pretrain))
    weights = cfg.model.backbone.init_cfg.checkpoint
    assert weights in map(str, pretrain)  # the work dir of pretraining
    for key in ('arch', 'img_size', 'layer_scale_init_value'):
        assert cfg.model.backbone[key] == pretraining.model.backbone[key]
    runs = [words[words.index('--work-dir') + 1] for words in (pretrained, scratch)]
    assert report[(place := report.index(runs[0])) - 1] == '--transfer'
    assert report[place : place + 2] == runs


@pytest.mark.parametrize(
    'cuda, flags, expected',
    [(True, '', 'bf16'), (False, 'avx2 amx_bf16', 'bf16'), (False, 'avx2', 'fp32')],
)
def test_bf16_only_where_the_hardware_has_it(demo, tmp_path, monkeypatch, cuda, flags, expected):
    (tmp_path / 'cpuinfo').write_text(f'flags: {flags}')
    monkeypatch.setattr('torch.cuda.is_available', lambda: cuda)
    assert demo.precision(tmp_path / 'cpuinfo') == expected


def python(tmp_path, name, code):
    """A script as a tool of the demo, by its path from tools/."""
    file = tmp_path / name
    file.write_text(code)
    return [os.path.relpath(file, ROOT / 'tools')]


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
    demo.run('meeting', commands, dict(GIVEN='42'), tmp_path)
    shown = capsys.readouterr().out
    assert 'one: a has 3 42' in shown and 'two: b has 3 42' in shown
    assert (tmp_path / 'meeting-one.log').read_text() == 'a has 3 42\n'


def test_one_failure_ends_the_others_and_shows_the_end_of_its_log(demo, tmp_path):
    wait = python(tmp_path, 'wait.py', 'import time\ntime.sleep(300)')
    fail = python(tmp_path, 'fail.py', 'print("first")\nraise SystemExit("out of luck")')
    start = time.monotonic()
    with pytest.raises(SystemExit, match=r"(?s)out of luck.*stage 'pair' failed.*pair-short.log"):
        demo.run('pair', {'long': wait, 'short': fail}, {}, tmp_path)
    assert time.monotonic() - start < 200
    assert (tmp_path / 'pair-short.log').read_text() == 'first\nout of luck\n'


def test_training_shows_its_progress_only(demo, tmp_path, capsys):
    head = '11/23 - mmengine - \033[37mINFO\033[0m - '
    lines = [
        f'{head}Config:',
        'model = dict(type="MCBEiT")',
        f'{head}Epoch(train)  [ 7][ 20/31]  lr: 1.0e-03  loss: 4.5',
        f'{head}Iter(val) [7/7]    mIoU: 0.1230',
        f'{head}Saving checkpoint at 40 epochs',
    ]
    tool = python(tmp_path, 'say.py', f'print({chr(10).join(lines)!r})')
    for training in (True, False):
        process = demo.subprocess.Popen(
            [demo.sys.executable, ROOT / 'tools' / tool[0]],
            stdout=demo.subprocess.PIPE,
            text=True,
        )
        assert demo.follow(process, 'a', tmp_path / 'log', training) == 0
        assert (tmp_path / 'log').read_text().splitlines() == lines
        shown = capsys.readouterr().out.splitlines()
        if training:
            assert shown == [
                '    a: Epoch(train)  [ 7][ 20/31]  lr: 1.0e-03  loss: 4.5',
                '    a: Iter(val) [7/7]    mIoU: 0.1230',
            ]
        else:
            assert shown == [f'    a: {line}' for line in lines]
