"""tools/evaluate_features.py: where the config comes from, output, errors."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from tiny_features import CONFIG, make_checkpoint, write_stripes

TOOL = ROOT / 'tools' / 'evaluate_features.py'
QUICK = ('--k', 5, '--num-workers', 0, '--batch-size', 8, '--device', 'cpu')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp('images'))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('evaluate_features', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tool, monkeypatch, capsys):
    """Run the tool in this process: (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['evaluate_features.py', *map(str, args)])
        code = 0
        try:
            tool.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    monkeypatch.delenv('MCBEIT_DATA', raising=False)
    monkeypatch.delenv('MCBEIT_TRACEBACK', raising=False)
    return run


def test_a_work_dir_in_a_process_of_its_own(tmp_path, folder, config):
    make_checkpoint(tmp_path / 'epoch_1.pth', config)
    out = tmp_path / 'scores.json'
    command = [sys.executable, TOOL, tmp_path, '--random-init', *QUICK, '--out', out]
    env = os.environ | dict(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='', MCBEIT_DATA=str(folder))
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=env, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result) == ['checkpoint', 'data', 'k', 'models']
    assert result['checkpoint'] == str(tmp_path) and result['k'] == 5
    assert result['data'] == dict(root=str(folder), train=42, val=18, classes=3)
    assert list(result['models']) == ['checkpoint', 'random init']
    model = result['models']['checkpoint']
    assert list(model['blocks']) == ['0', '1']
    rows = [line for line in done.stdout.split('\n') if line.startswith('|')]
    assert len(rows) == 2 + 2 + 1
    assert rows[2].split('|')[2].strip() == f'{model["blocks"]["0"]["knn"]:.2f}'
    assert '42 for training; k = 5' in done.stdout


def test_untrained_weights_and_one_layer(tmp_path, folder, config, call):
    out = tmp_path / 'scores.json'
    common = ['random', '--config', config, '--data', folder, *QUICK]
    code, _, _ = call(*common, '--layer', 'last', '--out', out)
    assert code == 0
    (scores,) = json.loads(out.read_text())['models'].values()
    assert list(scores['blocks']) == ['1']


@pytest.mark.parametrize(
    'args, message',
    [
        (['random', '--config', 'CONFIG'], 'no image folder: set --data ROOT or MCBEIT_DATA'),
        (['random', '--data', 'x'], "'random' needs --config"),
        (['FILE', '--data', 'x'], 'needs --config; only a work dir has its own'),
        (['none.pth', '--data', 'x'], 'no checkpoint none.pth'),
        (['random', '--config', 'tiny.py', '--data', 'x'], 'no config file tiny.py'),
        (['random', '--config', 'CONFIG', '--data', 'x'], 'no folder x/train'),
        (
            ['random', '--config', 'CONFIG', '--data', 'FOLDER', '--layer', '2'],
            'layers [2] are not',
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, folder, config, call, args, message):
    make_checkpoint(tmp_path / 'epoch_1.pth', config)
    places = dict(CONFIG=config, FOLDER=folder, FILE=tmp_path / 'epoch_1.pth')
    code, out, err = call(*(places.get(arg, arg) for arg in args), '--num-workers', 0)
    assert (code, out) == (2, '')
    (line,) = [line for line in err.split('\n') if line.startswith('error: ')]
    assert message in line
