"""What transfer runs logged."""

import pytest
from tiny_transfer import write_run

from mcbeit_mm.visualization.transfer_runs import TASKS, TransferRun

LOGS = {
    'mmpretrain': ({'accuracy/top1': 12.5}, {'top-1': 12.5}),
    'mmseg': ({'mIoU': 33.25, 'aAcc': 1.0}, {'mIoU': 33.25}),
    'mmdet': (
        {'coco/bbox_mAP': 0.251, 'coco/segm_mAP': 0.125, 'coco/bbox_mAP_50': 0.9},
        {'box AP': 25.1, 'mask AP': 12.5},
    ),
}
IOU_LOG = """x - INFO - per class results:
x - INFO -
+-------+-------+------+
| Class |  IoU  | Acc  |
+-------+-------+------+
|   sea |  {:5} | 1.0  |
|  land |  nan  | nan  |
+-------+-------+------+
x - INFO - Iter(val) [1/1]    aAcc: 19.0900  mIoU: 2.1300
"""
RECALL_LOG = 'x - Epoch(val) [{}][1/1]    single-label/recall_classwise: [{}, 50.5]  time: 1\n'


@pytest.mark.parametrize('scope', LOGS)
def test_metrics_are_the_last_validation_of_the_log(tmp_path, scope):
    validation, expected = LOGS[scope]
    run = TransferRun(write_run(tmp_path, scope, validation))
    assert run.metrics() == pytest.approx(expected)
    assert run.task == TASKS[scope] and run.pretrained
    key = next(iter(validation))
    steps = [entry['step'] for entry in run.scalars if key in entry]
    assert steps == [4, 8]  # not the epochs 1 and 2
    assert sum(entry['time'] for entry in run.scalars) == 10  # of training only


def test_a_run_without_logs(tmp_path):
    run = TransferRun(write_run(tmp_path, 'mmseg', {}, pretrained=False))
    for file in tmp_path.rglob('*.json'):
        file.unlink()
    assert run.scalars == [] and run.metrics() == {} and run.per_class() == {}
    assert run.confusion() is None and not run.pretrained


def test_iou_of_each_class_is_that_of_the_last_table(tmp_path):
    log = IOU_LOG.format('11.0') + IOU_LOG.format('22.5')
    values = TransferRun(write_run(tmp_path, 'mmseg', {}, log=log)).per_class()
    assert list(values) == ['sea', 'land'] and values['sea'] == 22.5
    assert values['land'] != values['land']  # nan: does not occur


def test_accuracy_of_each_class_is_the_last_recall(tmp_path):
    log = RECALL_LOG.format(1, '0.0') + RECALL_LOG.format(2, '100.0')
    run = TransferRun(write_run(tmp_path, 'mmpretrain', {}, log=log))
    assert run.per_class() == {'0': 100.0, '1': 50.5}


def test_precision_of_each_class_is_in_percent(tmp_path):
    logged = {'coco/a b_precision': 0.25, 'coco/c_precision': float('nan'), 'coco/bbox_mAP': 0.25}
    values = TransferRun(write_run(tmp_path, 'mmdet', logged)).per_class()
    assert list(values) == ['a b', 'c'] and values['a b'] == 25.0
    assert values['c'] != values['c']


def test_an_abbreviated_confusion_matrix_is_no_matrix(tmp_path):
    log = 'confusion_matrix/result: \ntensor([[1, 2],\n        [3, 4]])\n  time: 1'
    whole = TransferRun(write_run(tmp_path / 'a', 'mmpretrain', {}, log=log))
    assert whole.confusion().tolist() == [[1, 2], [3, 4]]
    log = log.replace('2]', '..., 2]')
    assert TransferRun(write_run(tmp_path / 'b', 'mmpretrain', {}, log=log)).confusion() is None


def test_other_folders_are_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no \\*.py in'):
        TransferRun(tmp_path / 'empty')
    with pytest.raises(ValueError, match='is not a transfer run'):
        TransferRun(write_run(tmp_path / 'a', 'mmengine', {}))
    with pytest.raises(ValueError, match='is not a transfer run'):
        TransferRun(write_run(tmp_path / 'b', 'mmseg', {}, val_dataloader=None))
