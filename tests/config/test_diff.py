"""Resolved differences of two configs."""

import sys

import pytest
from conftest import ROOT
from mmengine.config import Config

from mcbeit_mm.config.diff import as_text, compare_files, differences, settings

LOAD, FLIP = dict(type='Load'), dict(type='Flip', prob=0.5)


def lines(old, new):
    return [str(change) for change in differences(old, new)]


def test_leaves_that_were_changed_added_and_removed():
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
    assert lines(dict(p=old), dict(p=new)) == expected


def test_values_are_written_as_in_configs():
    value = dict(type=dict, a=('x',), b={1: [None], 'no name': 2.5})
    assert as_text(value) == "dict(type=builtins.dict, a=('x',), b={1: [None], 'no name': 2.5})"


def test_only_what_a_runner_reads_counts():
    cfg = Config(dict(model=dict(), train_pipeline=[], work_dir='x', custom_imports=dict()))
    assert set(settings(cfg)) == {'model', 'work_dir', 'custom_imports'}


@pytest.fixture
def files(tmp_path):
    """Base a; c inherits from it and has a helper variable."""
    texts = {
        'a': 'model = dict(tau=4.0, omega=0.2, steps=[dict(type="Load", size=1)])',
        'c': "_base_ = './a.py'\nresume = True\nsteps = _base_.model.steps\n"
        'steps[0].update(size=2)\nmodel = dict(steps=steps)',
    }
    for name, text in texts.items():
        (tmp_path / f'{name}.py').write_text(text)
    return str(tmp_path / 'a.py'), str(tmp_path / 'c.py')


def test_files_are_compared_after_inheritance_and_overrides(files):
    changes = compare_files(*files, cfg_options=['model.tau=1.0'])
    assert [str(change) for change in changes] == [
        'model.tau: 4.0 -> 1.0',
        'model.steps.Load.size: 1 -> 2',
        'resume: (absent) -> True',
    ]
    assert 'steps' in [
        change.name.split('.')[0] for change in compare_files(*files, everything=True)
    ]


def test_command(files, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    import config_diff as tool

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['config_diff.py', *args])
        with pytest.raises(SystemExit) as stop:
            tool.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    assert run(*files) == (1, 'model.steps.Load.size: 1 -> 2\nresume: (absent) -> True\n', '')
    assert run(files[0], files[0]) == (0, '', '')
    status, out, error = run(files[0], 'missing.py')
    assert status == 2 and not out and 'error: no config file missing.py' in error
