"""Reports on real runs of the three libraries, and warnings about runs that do not match."""

import numpy as np
import pytest
import torch
from html_page import Page
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from tiny_transfer import train_pair, write_run

from mcbeit_mm.visualization import transfer_report
from mcbeit_mm.visualization.page import render
from mcbeit_mm.visualization.report import write_report
from mcbeit_mm.visualization.transfer_runs import METRICS, TransferRun

DETECTION = {'coco/bbox_mAP': 0.251, 'coco/segm_mAP': 0.125}
NUM_CLASSES = {'classification': 10, 'segmentation': 11, 'detection': 10}


def page_of(*sections):
    return Page(render('x', sections))


def rows(page):
    return '|'.join(text for text in page.texts if text.strip())


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('transfer')


@pytest.fixture(scope='module', params=METRICS)
def real(request, root):
    """Task, work dirs and report of two real runs."""
    torch.manual_seed(0)
    folders = train_pair(request.param, root)
    out = write_report(transfers=[folders], out=root / f'{request.param}.html', device='cpu')
    return request.param, folders, Page(out.read_text())


def test_the_report_of_real_runs(real):
    task, folders, page = real
    assert page.titles == ['Transfer', task.capitalize()]
    run = TransferRun(folders[0])
    (*_, (key, title)) = METRICS[task].items()
    value = f'{run.last[key]:.1f}'
    assert f'{task}: {title}|{value}|{value}|+0.0' in rows(page)
    for problem in ('differ in more', 'no numbers per class'):
        assert problem not in page.text
    assert len(page.pictures) == 3 * 5 + 1  # truth and two models, curves
    truth, pretrained, scratch = (page.pictures[i : i + 5] for i in (0, 5, 10))
    for i in range(5):
        np.testing.assert_array_equal(pretrained[i], scratch[i])  # copies, drawn the same
    assert any((a != b).any() for a, b in zip(truth, pretrained, strict=True))


def test_numbers_per_class_of_real_logs_agree_with_the_metric(real):
    task, folders, page = real
    run = TransferRun(folders[0])
    values = run.per_class()
    assert len(values) == NUM_CLASSES[task]
    (*_, key) = METRICS[task]
    assert run.last[key] == pytest.approx(np.nanmean(list(values.values())), abs=0.06)
    name, value = next((n, v) for n, v in values.items() if v == v)
    assert f'{name}|{value:.1f}|{value:.1f}|+0.0' in rows(page)
    if task == 'segmentation':
        assert list(values)[:2] == ['background', 'digit_0'] and np.nansum([*values.values()]) > 0


def test_table_holds_the_last_validations(tmp_path):
    tasks = [  # detection from scratch was never validated
        transfer_report.named_runs(folders)
        for folders in (
            [
                write_run(tmp_path / 'a', 'mmseg', {'mIoU': 33.25}),
                write_run(tmp_path / 'b', 'mmseg', {'mIoU': 40.0}, pretrained=False),
            ],
            [
                write_run(tmp_path / 'c', 'mmdet', DETECTION),
                write_run(tmp_path / 'd', 'mmdet', {}, pretrained=False),
            ],
        )
    ]
    page = page_of(transfer_report.table_section(tasks))
    found = rows(page)
    assert 'last validation, %|pretrained|from scratch|difference' in found
    assert 'segmentation: mIoU|33.2|40.0|-6.8' in found  # scratch may win
    assert 'detection: box AP|25.1|–|–' in found
    assert 'detection: mask AP|12.5|–|–' in found
    assert 'Not a fair comparison' not in page.text


def test_unequal_runs_are_called_unfair(tmp_path):
    folders = [
        write_run(tmp_path / 'a', 'mmseg', {'mIoU': 1.0}),
        write_run(tmp_path / 'b', 'mmseg', {'mIoU': 1.0}, train_cfg=dict(max_iters=20)),
    ]
    runs = transfer_report.named_runs(folders)
    assert list(runs) == ['a', 'b']  # both pretrained: named after their folders
    section = transfer_report.table_section([runs])
    assert section.values['changed'] == ['segmentation: train_cfg.max_iters']
    assert '(segmentation: train_cfg.max_iters)' in page_of(section).text
    other = write_run(tmp_path / 'c', 'mmdet', {})
    with pytest.raises(ValueError, match='can only compare runs of the same task'):
        transfer_report.named_runs([folders[0], other])


def test_the_start_of_a_run_is_no_difference(tmp_path):
    runs = transfer_report.named_runs(
        [
            write_run(tmp_path / 'a', 'mmseg', {'mIoU': 1.0}, work_dir='a', load_from='x.pth'),
            write_run(tmp_path / 'b', 'mmseg', {'mIoU': 1.0}, work_dir='b', pretrained=False),
        ]
    )
    assert list(runs) == ['pretrained', 'from scratch']
    assert not transfer_report.table_section([runs]).values['changed']


def test_each_class_is_a_row(tmp_path):
    validations = (
        {'coco/cat_precision': 0.5, 'coco/dog_precision': float('nan')},
        {'coco/cat_precision': 0.25, 'coco/emu_precision': 0.1},
    )
    runs = [write_run(tmp_path / str(i), 'mmdet', v) for i, v in enumerate(validations)]
    assert transfer_report.class_rows(transfer_report.named_runs(runs)) == [
        ['cat', '50.0', '25.0', '+25.0'],
        ['dog', '–', '–', '–'],
        ['emu', '–', '10.0', '–'],
    ]


def test_a_run_without_checkpoint_is_refused(tmp_path):
    runs = transfer_report.named_runs([write_run(tmp_path / 'a', 'mmdet', DETECTION)])
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        transfer_report.task_section(runs, 'cpu')


def test_segmentation_is_painted_in_the_colors_of_the_data_set(tmp_path):
    from mmseg.structures import SegDataSample

    photo = tmp_path / 'x.png'
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(photo)
    sample = SegDataSample(img_path=str(photo))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.long))
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 8, 8, dtype=torch.long))
    meta = dict(classes=('a', 'b'), palette=[(0, 0, 0), (200, 100, 0)])
    truth, prediction = (
        transfer_report.draw('segmentation', sample, meta, truth) for truth in (True, False)
    )
    assert (truth == 50).all() and (prediction == (150, 100, 50)).all()


def test_detections_with_low_scores_are_left_out(tmp_path):
    from mmdet.structures import DetDataSample

    photo = tmp_path / 'x.png'
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(photo)
    sample = DetDataSample(metainfo=dict(img_path=str(photo)))
    boxes = torch.tensor([[10.0, 100, 60, 160], [200, 100, 260, 160]])
    masks = torch.zeros(2, 300, 300, dtype=torch.bool)
    sample.pred_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.05]), masks=masks
    )
    picture = transfer_report.draw('detection', sample, dict(classes=('a', 'b')), truth=False)
    assert (picture[100:160, 8:12] > 0).any() and not picture[:, 150:].any()
