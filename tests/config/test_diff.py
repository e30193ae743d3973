"""Resolved differences of two configs, and the files that they come from."""

import sys

import pytest
from conftest import ROOT
from mmengine.config import Config

from mcbeit_mm.config.diff import ABSENT, ConfigFile, as_text, differences, lookup, settings

LOAD, FLIP = dict(type='Load'), dict(type='Flip', prob=0.5)


def lines(old, new):
    return [str(change) for change in differences(old, new)]


def test_leaves_that_changed_came_and_went():
    old = dict(model=dict(head=dict(omega=0.2, tau=4.0), depth=12), same=[1, 2])
    new = dict(model=dict(head=dict(omega=0.5, tau=4), extra=dict(a='x', b={})), same=(1, 2))
    assert lines(old, new) == [
        'model.head.omega: 0.2 -> 0.5',
        'model.depth: 12 -> (absent)',
        "model.extra.a: (absent) -> 'x'",
        'model.extra.b: (absent) -> dict()',
    ]
    assert not differences(old, old)


@pytest.mark.parametrize(
    'old, new, expected',
    [
        ([LOAD, FLIP], [LOAD, dict(FLIP, prob=1)], ['p.Flip.prob: 0.5 -> 1']),
        ([LOAD, FLIP], [LOAD], ["p.Flip: dict(type='Flip', prob=0.5) -> (absent)"]),
        ([], [LOAD], ["p.Load: (absent) -> dict(type='Load')"]),
        ([LOAD, FLIP], [FLIP, LOAD], ["p.(order): ['Load', 'Flip'] -> ['Flip', 'Load']"]),
        ([FLIP, FLIP], [FLIP, dict(FLIP, prob=0.1)], ['p.Flip#2.prob: 0.5 -> 0.1']),
        ([dict(lr=1), dict(lr=2)], [dict(lr=1), dict(lr=3)], ['p.1.lr: 2 -> 3']),
        ([0.9, 0.98], (0.9, 0.999), ['p: [0.9, 0.98] -> (0.9, 0.999)']),
        ([LOAD], None, ["p: [dict(type='Load')] -> None"]),
        (1, True, ['p: 1 -> True']),
        (dict(), None, ['p: dict() -> None']),
    ],
)
def test_lists_and_kinds(old, new, expected):
    changes = differences(dict(p=old), dict(p=new))
    assert [str(change) for change in changes] == expected
    for change in changes:  # a key finds its value again
        found = lookup(dict(p=old), change.key)
        assert found is ABSENT if change.old is ABSENT else found == change.old


def test_values_are_written_as_in_configs():
    value = dict(type=dict, a=('x',), b={1: [None], 'no name': 2.5})
    assert as_text(value) == "dict(type=builtins.dict, a=('x',), b={1: [None], 'no name': 2.5})"


def test_only_what_a_runner_reads_counts():
    cfg = Config(dict(model=dict(), train_pipeline=[], work_dir='x', custom_imports=dict()))
    assert set(settings(cfg)) == {'model', 'work_dir', 'custom_imports'}


@pytest.fixture
def files(tmp_path):
    """Base a; b and other both inherit; the base of c is chosen by a variable."""
    texts = {
        'a': 'model = dict(tau=4.0, omega=0.2, gone=1, steps=[dict(type="Load", size=1)])',
        'b': "_base_ = ['./a.py', './data.py']\nmodel = dict(_delete_=True, tau=4.0, omega=0.5,\n"
        '    steps=_base_.model.steps)',
        'data': "load_from = 'x'",
        'c': "_base_ = './{{$DIFF_BASE:a}}.py'\nresume = True\nsteps = _base_.model.steps\n"
        'steps[0].update(size=2)\nmodel = dict(steps=steps)',
        'd': "names = ['a']\n_base_ = [f'./{name}.py' for name in ['a']]\nresume = True",
    }
    for name, text in texts.items():
        (tmp_path / f'{name}.py').write_text(text)
    return tmp_path


def origin(file, key):
    found = ConfigFile(file).origin(tuple(key.split('.')))
    return found and found.stem


def test_the_most_derived_file_that_changes_a_value_set_it(files, monkeypatch):
    monkeypatch.setenv('DIFF_BASE', 'b')
    c = files / 'c.py'
    assert origin(c, 'model.tau') == 'a'  # repeated in b, yet unchanged
    assert origin(c, 'model.omega') == 'b'
    assert origin(c, 'model.gone') == 'b'  # which deleted it
    assert origin(c, 'model.steps.Load.size') == 'c'
    assert origin(c, 'load_from') == 'data'
    assert origin(c, 'model.never') is None
    monkeypatch.delenv('DIFF_BASE')
    assert origin(c, 'model.omega') == origin(c, 'model.gone') == 'a'


def test_a_computed_base_ends_the_search(files):
    assert origin(files / 'd.py', 'model.tau') == 'd'


def test_bases_of_other_packages():
    path = next((ROOT / 'configs/_base_/models').glob('mask-rcnn_mcbeit-vit-base*.py'))
    pytest.importorskip('mmdet')
    found = ConfigFile(path).origin(('model', 'rpn_head', 'anchor_generator', 'strides'))
    assert 'mmdet' in str(found) and found.is_file()


def test_command(files, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    monkeypatch.chdir(files)
    import config_diff as tool

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['config_diff.py', *args])
        with pytest.raises(SystemExit) as stop:
            tool.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out.splitlines(), captured.err

    # without helper variables such as `steps`
    assert run('a.py', 'c.py', '--cfg-options', 'model.tau=1.0') == (
        1,
        [
            'model.tau: 4.0 -> 1.0  [a.py -> --cfg-options]',
            'model.steps.Load.size: 1 -> 2  [a.py -> c.py]',
            'resume: (absent) -> True  [- -> c.py]',
        ],
        '',
    )
    assert any(line.startswith('steps: ') for line in run('a.py', 'c.py', '--all')[1])
    assert run('a.py', 'a.py')[:2] == (0, [])
    status, out, error = run('a.py', 'missing.py')
    assert status == 2 and not out and 'error: no config file missing.py' in error
