"""What transfer runs logged, and how their configs differ."""

import pytest
from tiny_transfer import write_run

from mcbeit_mm.visualization import transfer_runs
from mcbeit_mm.visualization.transfer_runs import TransferRun, config_differences

LOGS = {
    'mmpretrain': ({'accuracy/top1': 12.5}, {'top-1': 12.5}),
    'mmseg': ({'mIoU': 33.25, 'aAcc': 1.0}, {'mIoU': 33.25}),
    'mmdet': (
        {'coco/bbox_mAP': 0.251, 'coco/segm_mAP': 0.125, 'coco/bbox_mAP_50': 0.9},
        {'box AP': 25.1, 'mask AP': 12.5},
    ),
}


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
