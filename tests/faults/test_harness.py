"""The code of the fault campaign detects what it must detect."""

import copy
import json
import os
import random
from collections import OrderedDict

import corruption
import fault_points
import numpy as np
import pytest
import torch
from compare import compare, curves, differences, is_clock, learned, load
from fault_report import as_table, summary
from full_disk import fill
from mmengine.logging import HistoryBuffer
from run_state import PHASES, START, TRAINING, State


def checkpoint() -> dict:
    weights = torch.linspace(-1, 1, 12).view(3, 4)
    state = {0: dict(step=torch.tensor(3.0), exp_avg=weights / 7, exp_avg_sq=weights.square())}
    scalars = {
        'train/loss': HistoryBuffer([1.5, 1.25], [1, 1]),
        'train/time': HistoryBuffer([3], [1]),
    }
    return dict(
        state_dict=OrderedDict({'backbone.w': weights, 'head.n': torch.arange(3)}),
        ema_state_dict={'module.w': weights.to(torch.bfloat16), 'steps': torch.tensor(2)},
        optimizer=dict(state=state, param_groups=[dict(lr=1e-3, betas=(0.9, 0.98), params=[0])]),
        param_schedulers=[dict(last_step=2, _last_value=[1e-3])],
        meta=dict(epoch=1, iter=2, seed=0, time='now', cfg='work_dir = 1'),
        message_hub=dict(
            log_scalars=scalars,
            runtime_info=dict(iter=1, epoch=0, cfg='x', last_ckpt='a'),
            resumed_keys={'train/loss': True},
        ),
    )


def compared(a: dict, b: dict) -> list[str]:
    return differences(learned(a), learned(b), 'checkpoint')


def test_equal_checkpoints_have_no_differences():
    assert compared(checkpoint(), checkpoint()) == []


def up(tensor: torch.Tensor) -> None:
    """Raise one value to its successor."""
    tensor.view(-1)[5] = torch.nextafter(tensor.view(-1)[5], torch.tensor(9.0))


CHANGES = {
    'state_dict.backbone.w': lambda c: up(c['state_dict']['backbone.w']),
    'optimizer.state.0.exp_avg': lambda c: up(c['optimizer']['state'][0]['exp_avg']),
    'optimizer.param_groups[0].lr': lambda c: c['optimizer']['param_groups'][0].update(
        lr=np.nextafter(1e-3, 1).item()
    ),
    'optimizer.state.1': lambda c: c['optimizer']['state'].update({1: {}}),
    'ema_state_dict.module.w': lambda c: c['ema_state_dict']['module.w'][0, :1].neg_(),
    'ema_state_dict.steps': lambda c: c['ema_state_dict']['steps'].add_(1),
    'param_schedulers[0].last_step': lambda c: c['param_schedulers'][0].update(last_step=3),
    'meta.iter': lambda c: c['meta'].update(iter=3),
    'scalars.train/loss': lambda c: c['message_hub']['log_scalars'].update(
        {'train/loss': HistoryBuffer([1.5, np.nextafter(1.25, 2)], [1, 1])}
    ),
    'scalars.train/knn_top1': lambda c: c['message_hub']['log_scalars'].update(
        {'train/knn_top1': HistoryBuffer([1], [1])}
    ),
    'info.epoch': lambda c: c['message_hub']['runtime_info'].update(epoch=1),
    'rank_states': lambda c: c.update(rank_states=[dict(grads=torch.zeros(1))]),
}


@pytest.mark.parametrize('where', CHANGES)
def test_the_smallest_change_is_found_and_named(where):
    changed = copy.deepcopy(checkpoint())
    CHANGES[where](changed)
    found = compared(checkpoint(), changed)
    assert len(found) == 1 and found[0].startswith(f'checkpoint.{where}'), found


def test_clocks_and_places_may_differ():
    changed = checkpoint()
    changed['message_hub']['log_scalars']['train/time'] = HistoryBuffer([4], [1])
    changed['message_hub']['runtime_info'].update(cfg='y', last_ckpt='b')
    changed['meta'].update(time='later', cfg='work_dir = 2')
    assert compared(checkpoint(), changed) == []
    assert is_clock('train/data_time') and is_clock('eta') and not is_clock('train/time_left')


@pytest.mark.parametrize(
    'a, b, equal',
    [
        (0.0, -0.0, False),
        (float('nan'), float('nan'), True),
        (1, 1.0, False),
        (1, True, False),
        (torch.zeros(2), -torch.zeros(2), False),
        (torch.full((2,), float('nan')), torch.full((2,), float('nan')), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(2), torch.zeros(1, 2), False),
        (np.zeros(2), np.zeros(2, np.float32), False),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], (1, 2), False),
        (dict(a=1), dict(b=1), False),
        ('x', 'x', True),
    ],
)
def test_bits_count_not_values(a, b, equal):
    assert (differences(a, b) == []) == equal


def write_run(folder, loss: float, lines: int = 3):
    """Write a work dir with a log in two parts, as of a resumed run."""
    folder.mkdir()
    torch.save(checkpoint(), folder / 'iter_3.pth')
    steps = [dict(step=s, loss=s + loss, lr=0.1, time=loss, memory=1) for s in range(1, lines + 1)]
    for name, part in (('1', steps[:2]), ('2', steps[1:])):
        (folder / name / 'vis_data').mkdir(parents=True)
        text = '\n'.join(map(json.dumps, part))
        (folder / name / 'vis_data/scalars.json').write_text(text + '\n')
    return folder


def test_logs_are_merged_and_compared_without_clocks(tmp_path):
    runs = [write_run(tmp_path / 'a', 0.5), write_run(tmp_path / 'b', 0.5)]
    assert curves(runs[0]) == [dict(step=s, loss=s + 0.5, lr=0.1) for s in (1, 2, 3)]
    assert compare(*runs, 3) == []
    other = write_run(tmp_path / 'c', 0.5 + 2**-50)
    count, *first = compare(runs[0], other, 3)
    assert [line.split(':')[0] for line in first] == [f'curve[{i}].loss' for i in range(3)]
    assert count.startswith('3 differences')
    short = write_run(tmp_path / 'd', 0.5, lines=2)
    assert compare(runs[0], short, 3)[1:] == ['curve: 3 and 2 entries']
    (runs[1] / 'iter_3.pth').unlink()
    assert 'no final checkpoint' in compare(runs[1], runs[0], 3)[0]


@pytest.mark.parametrize('kind', corruption.KINDS)
def test_every_kind_of_damage_changes_a_file(kind):
    data = random.Random(0).randbytes(10_000)
    damaged = [corruption.KINDS[kind](data, random.Random(seed)) for seed in range(20)]
    assert data not in damaged
    assert (max(map(len, damaged)) < len(data)) == (kind == 'truncate')


def test_a_damaged_file_used_silently_is_reported(tmp_path, monkeypatch):
    files = [tmp_path / f'iter_{i}.pth' for i in (1, 2)]
    for file in files:
        torch.save(checkpoint(), file)
    content = {file.name: load(file) for file in files}
    answer = {}
    monkeypatch.setattr(corruption, 'ask', lambda work: (answer['file'], answer['said']))

    def verdict(file, said=''):
        answer.update(file=file, said=said)
        return corruption.judge(tmp_path, files[1:], files[0], content)

    assert verdict(files[1]) == 'harmless'
    assert verdict(files[0], 'iter_2.pth is damaged') == 'detected'
    assert verdict(files[0]) == 'skipped without a message'
    assert 'None used' in verdict(None, 'iter_2.pth is damaged')
    changed = checkpoint()
    up(changed['state_dict']['backbone.w'])
    torch.save(changed, files[1])
    assert verdict(files[1]) == 'SILENT'
    files[1].write_bytes(files[1].read_bytes()[:1000])
    assert verdict(files[1]).startswith('not detected before loading it')


def test_fail_points_count_operations_on_checkpoints(tmp_path, monkeypatch):
    hits = []
    monkeypatch.setattr(fault_points, 'fail', lambda kind, file: hits.append((kind, file)))
    state = State(tmp_path / 'state')
    point = fault_points.FilePoints(state, 'torn', 3)
    path, write = str(tmp_path / 'iter_3.pth.tmp'), os.O_WRONLY | os.O_CREAT
    point('open', (path, 'wb', write))
    assert state.read() == dict(phase=START, done=-1, begun=-1, operations=0)  # starting up
    state.write(phase=TRAINING, done=3)
    point('open', (path, 'wb', write))
    point('open', (path, 'rb', os.O_RDONLY))
    point('open', (str(tmp_path / 'scalars.json'), 'a', write))
    point('os.rename', (path, str(tmp_path / 'iter_3.pth'), -1, -1))
    assert state.read()['operations'] == 2 and not hits
    point('os.rename', (str(tmp_path / 'last_checkpoint.tmp'), 'x', -1, -1))
    assert hits == [('torn', str(tmp_path / 'last_checkpoint.tmp'))]
    point('os.remove', (path, -1))
    assert len(hits) == 1


def test_a_torn_write_leaves_a_part(tmp_path):
    """The process is killed without running its exit handlers."""
    file = tmp_path / 'iter_1.pth.tmp'
    file.write_bytes(bytes(1000))
    pid = os.fork()
    if pid == 0:
        try:
            fault_points.fail('torn', str(file))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert 0 <= file.stat().st_size < 1000


def test_filling_a_disk_stops_at_the_limit(tmp_path, monkeypatch):
    class Stat:
        f_frsize = 1

        @property
        def f_bavail(self):
            return 3_000_000 - (tmp_path / 'ballast').stat().st_size

    monkeypatch.setattr(os, 'statvfs', lambda folder: Stat())
    assert fill(tmp_path, 10_000).stat().st_size == 2_990_000


def test_the_table_counts_hits_by_phase():
    def entry(fault, phase, lost=0, hit=True, damaged=''):
        return dict(
            fault=fault, phase=phase, lost=lost, hit=hit, real=False, orphans=2, damaged=damaged
        )

    launches = [
        entry('SIGKILL', PHASES[1], 3),
        entry('SIGKILL', PHASES[2], 1),
        entry('SIGKILL', PHASES[2], 5, damaged='flip of iter_3.pth'),
        entry('SIGTERM', PHASES[3]),
        entry('', PHASES[4], hit=False),
    ]
    result = dict(
        launches=launches, lives=1, seed=0, interval=3, seconds=60, problems=['one'],
        disk=dict(runs=4, way='tmpfs'),
        corruption=dict(cases=dict(flip=dict(detected=2, SILENT=1)), notes=8, silent=1),
    )  # fmt: skip
    result['summary'] = summary(result)
    assert result['summary']['hits'] == 4 and result['summary']['files'] == 3
    assert '| SIGKILL | 0 | 1 | 2 | 0 | 3 |' in as_table(result, markdown=True).splitlines()
    text = as_table(result)
    assert '1 used silently' in text and 'Problems: 1.' in text and '- one' in text
