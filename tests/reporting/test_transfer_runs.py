"""What transfer runs logged, and how their configs differ."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mcbeit_mm.reporting import transfer_runs
from mcbeit_mm.reporting.transfer_runs import TransferRun, config_differences

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
LOGS = {
    'mmpretrain': ({'accuracy/top1': 12.5}, {'top-1': 12.5}),
    'mmseg': ({'mIoU': 33.25, 'aAcc': 1.0}, {'mIoU': 33.25}),
    'mmdet': (
        {'coco/bbox_mAP': 0.251, 'coco/segm_mAP': 0.125, 'coco/bbox_mAP_50': 0.9},
        {'box AP': 25.1, 'mask AP': 12.5},
    ),
}


def write_run(folder: Path, scope: str, validation: dict, **settings) -> TransferRun:
    """A work dir with a config and a log: ten steps, a validation after 4 and one after 8."""
    log = folder / '20260101_000000/vis_data'
    log.mkdir(parents=True)
    entries = [dict(lr=0.1, loss=1 / step, step=step, time=1.0) for step in range(1, 11)]
    first = dict.fromkeys(validation, 0.0) | dict(step=1, data_time=0.5, time=9.0)
    entries.insert(4, first)
    entries.insert(9, validation | dict(step=2, data_time=0.5, time=9.0))
    lines = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (log / 'scalars.json').write_text(lines)
    backbone = dict(type='MCBEiTViT', init_cfg=dict(type='Pretrained', checkpoint='x.pth'))
    cfg = dict(
        default_scope=scope,
        model=dict(backbone=backbone),
        val_dataloader=dict(dataset=dict()),
        train_cfg=dict(max_iters=10),
    )
    Config(cfg | settings).dump(folder / 'run.py')
    return TransferRun(folder)


@pytest.mark.parametrize('scope', LOGS)
def test_metrics_are_the_last_validation_of_the_log(tmp_path, scope):
    validation, expected = LOGS[scope]
    run = write_run(tmp_path, scope, validation)
    assert run.metrics() == pytest.approx(expected)
    assert run.task == transfer_runs.TASKS[scope] and run.pretrained
    key = next(iter(validation))
    steps = [entry['step'] for entry in run.scalars if key in entry]
    assert steps == [4, 8]  # not the epochs 1 and 2
    assert sum(entry['time'] for entry in run.scalars) == 10  # of training only


def test_other_folders_are_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no \\*.py in'):
        TransferRun(tmp_path / 'empty')
    with pytest.raises(ValueError, match='is no transfer run'):
        write_run(tmp_path / 'a', 'mmengine', {})
    with pytest.raises(ValueError, match='is no transfer run'):
        write_run(tmp_path / 'b', 'mmseg', {}, val_dataloader=None)


def test_only_the_initial_weights_may_differ():
    start = dict(type='Pretrained', checkpoint='a')
    first = dict(work_dir='a', model=dict(backbone=dict(depth=2, init_cfg=start)), steps=[1, 2])
    second = dict(work_dir='b', model=dict(backbone=dict(depth=2, init_cfg=None)), steps=[1, 2])
    assert config_differences(first, second) == []
    second = dict(second, steps=[1, 3], lr=1.0)
    assert config_differences(first, second) == ['steps.1', 'lr']
