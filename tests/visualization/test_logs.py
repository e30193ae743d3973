"""Scalars of runs that were resumed, restarted or killed."""

import json
import os

import pytest

from mcbeit_mm.visualization.logs import curves, newest, read_scalars


def write(work_dir, timestamp, entries, tail=''):
    folder = work_dir / timestamp / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (folder / 'scalars.json').write_text(text + tail)


def steps(first, last, run):
    return [dict(step=step, loss=step + run, epoch=1) for step in range(first, last + 1)]


def test_a_resumed_run_continues_and_replaces_repeated_steps(tmp_path):
    write(tmp_path, '20260101_000000', steps(1, 7, run=0.1))  # killed after a checkpoint at 4
    write(tmp_path, '20260101_000100', steps(5, 6, run=0.2))
    write(tmp_path, '20260101_000200', [])  # started, logged nothing
    merged = read_scalars(tmp_path)
    assert [entry['step'] for entry in merged] == [1, 2, 3, 4, 5, 6]
    assert [entry['loss'] for entry in merged] == [1.1, 2.1, 3.1, 4.1, 5.2, 6.2]


def test_a_restarted_run_replaces_everything(tmp_path):
    write(tmp_path, '20260101_000000', steps(1, 9, run=0.1))
    write(tmp_path, '20260102_000000', steps(1, 2, run=0.5))
    assert [entry['loss'] for entry in read_scalars(tmp_path)] == [1.5, 2.5]


def test_lines_of_one_step_are_one_entry(tmp_path):
    write(tmp_path, 'a', [*steps(1, 2, run=0), dict(knn_top1=12.5, epoch=1, step=2)])
    assert read_scalars(tmp_path)[-1] == dict(step=2, loss=2, epoch=1, knn_top1=12.5)


def test_an_incomplete_last_line_is_dropped(tmp_path):
    write(tmp_path, 'a', steps(1, 3, run=0), tail='{"step": 4, "lo')
    assert [entry['step'] for entry in read_scalars(tmp_path)] == [1, 2, 3]


def test_damage_elsewhere_is_an_error_with_its_place(tmp_path):
    write(tmp_path, 'a', steps(1, 1, run=0), tail='{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match='scalars.json, line 2 is not JSON'):
        read_scalars(tmp_path)


def test_a_folder_without_logs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no training log in'):
        read_scalars(tmp_path)


def test_a_validation_belongs_to_the_training_before_it(tmp_path):
    training = [dict(step=step, lr=0.1, time=1.0) for step in (10, 20, 30)]
    by_epoch = dict(step=1, mIoU=5.0, time=7.0, data_time=3.0)  # step is the epoch
    by_iter = dict(step=33, mIoU=6.0, time=7.0, data_time=3.0)
    write(tmp_path, 'a', [*training[:2], by_epoch, training[2], by_iter])
    merged = read_scalars(tmp_path)
    assert [(entry['step'], entry.get('mIoU')) for entry in merged] == [
        (10, None), (20, 5.0), (30, None), (33, 6.0)
    ]  # fmt: skip
    assert merged[1]['time'] == 1.0 and 'time' not in merged[3]


def test_the_newest_file_of_a_work_dir(tmp_path):
    for age, name in enumerate(('b.py', 'a.py')):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert newest(tmp_path, '*.py').name == 'a.py'
    with pytest.raises(FileNotFoundError, match='no \\*.pth in'):
        newest(tmp_path, '*.pth')


def test_a_resumed_run_that_begins_with_its_validation(tmp_path):
    training = [entry | dict(lr=0.1) for entry in steps(1, 4, run=0.1)]
    validation = dict(top1=50.0, data_time=0.1, time=0.2, step=1)  # MMEngine writes the epoch
    write(tmp_path, '20260101_000000', training)  # killed while validating
    write(tmp_path, '20260101_000100', [validation, dict(step=5, lr=0.1, loss=5.2)])
    write(tmp_path, '20260101_000200', [validation | dict(top1=60.0, step=2)])
    merged = read_scalars(tmp_path)
    assert [entry['step'] for entry in merged] == [1, 2, 3, 4, 5]
    assert merged[3]['top1'] == 50.0 and merged[4]['top1'] == 60.0 and 'top1' not in merged[0]


def test_a_resumed_run_that_begins_with_its_knn(tmp_path):
    write(tmp_path, '20260101_000000', steps(1, 4, run=0.1))
    write(tmp_path, '20260101_000100', [dict(knn_top1=40.0, step=4)])
    merged = read_scalars(tmp_path)
    assert merged[3] == dict(step=4, loss=4.1, epoch=1, knn_top1=40.0)


def test_curves_by_title_and_log():
    logs = {'a': [dict(step=1, x=5.0), dict(step=2, y=6.0)], 'b': [dict(step=3, y=7.0)]}
    panels = curves(logs, {'y': 'Y', 'x': 'X', 'z': 'Z'})
    assert panels == {'Y': {'a': [(2, 6.0)], 'b': [(3, 7.0)]}, 'X': {'a': [(1, 5.0)], 'b': []}}
    with pytest.raises(ValueError, match='the log has none of z, loss'):
        curves(logs, {'z': 'Z', 'loss': 'L'})
