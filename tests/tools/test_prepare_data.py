"""The command: exit status, output, options."""

import importlib.util
import sys

import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture
def run(monkeypatch):
    """run(words) -> exit status of the tool, in this process."""
    spec = importlib.util.spec_from_file_location('prepare_data', ROOT / 'tools/prepare_data.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['prepare_data.py', *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            tool.main()
        return stop.value.code

    return run


def test_status_and_file(run, tmp_path, capsys):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.jpg')
    assert run('folder', tmp_path) == 0
    assert capsys.readouterr().out.endswith('\nno problems\n')
    (tmp_path / 'b.jpg').write_text('no image')
    assert run('folder', tmp_path, '--workers', 1) == 1
    out = capsys.readouterr().out
    assert 'ERROR 1 x not an image' in out and out.endswith('\n1 problem\n')
    (tmp_path / 'b.jpg').unlink()
    for i in range(9):
        (tmp_path / f'b{i}.jpg').touch()
    assert run('folder', tmp_path, '--out', tmp_path / 'all.txt', '--fast', '--workers', 1) == 1
    assert 'b8.jpg' not in capsys.readouterr().out
    assert f'    {tmp_path.name}/b8.jpg\n' in (tmp_path / 'all.txt').read_text()


def test_wrong_usage(run, tmp_path, capsys):
    assert run('voc', tmp_path) == 2
    assert run('coco', tmp_path / 'none') == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('error: no folder')
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
    assert run('imagenet', tmp_path, '--train-list', 'none.txt') == 2
    assert 'none.txt' in capsys.readouterr().err


def test_options_reach_the_checks(run, tmp_path, capsys):
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        Image.new('RGB', (8, 8)).save(tmp_path / split / 'x.jpg')
        (tmp_path / f'{split}.txt').write_text('x.jpg 0\n')
    (tmp_path / 'order.txt').write_text('cat\n')
    lists = ('--train-list', 'train.txt', '--val-list', 'val.txt', '--classes', 1)
    order = ('--label-order', tmp_path / 'order.txt', '--write-lists', tmp_path / 'lists')
    assert run('imagenet', tmp_path, *lists, *order) == 0
    assert (tmp_path / 'lists/classes.txt').read_text() == 'cat\n'
    assert run('ade20k', tmp_path, '--zero-is-class', '--classes', 3) == 1
    assert run('coco', tmp_path, '--split', 'a.json', 'train') == 1
    assert 'no annotation file' in capsys.readouterr().out
