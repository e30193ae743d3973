"""Reports on real runs of the three libraries, and what is said of runs that do not match."""

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
TITLES = {'classification': 'top-1', 'segmentation': 'mIoU', 'detection': 'mask AP'}
NUM_CLASSES = {'classification': 10, 'segmentation': 11, 'detection': 10}


def compare(*folders):
    return transfer_report.compare([TransferRun(folder) for folder in folders])


def page_of(*sections):
    return Page(render('x', sections))


def rows(page):
    return '|'.join(text for text in page.texts if text.strip())


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('transfer')


@pytest.fixture(scope='module', params=TITLES)
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
    assert list(run.metrics()) == [title for title, _ in METRICS[task].values()]
    value = f'{run.metrics()[TITLES[task]]:.1f}'
    assert f'{task}: {TITLES[task]}|{value}|{value}|+0.0' in rows(page)
    assert 'only the\ninitial weights differ' in page.text
    for problem in ('differ in more', 'no validation', 'no checkpoint', 'no numbers per class'):
        assert problem not in page.text
    pictures = 3 * 5  # truth and two models
    charts = 2 + 2 * (task == 'classification')  # curves, classes; confusions
    assert len(page.pictures) == pictures + charts
    truth, pretrained, scratch = (page.pictures[i : i + 5] for i in (0, 5, 10))
    for i in range(5):
        np.testing.assert_array_equal(pretrained[i], scratch[i])  # copies, drawn the same
    assert any((a != b).any() for a, b in zip(truth, pretrained, strict=True))


def test_numbers_per_class_of_real_logs_agree_with_the_metric(real):
    task, folders, _ = real
    run = TransferRun(folders[0])
    values = list(run.per_class().values())
    assert len(values) == NUM_CLASSES[task]
    if task == 'classification':
        matrix = run.confusion().double()
        np.testing.assert_allclose(values, 100 * matrix.diagonal() / matrix.sum(1), rtol=1e-4)
        assert matrix.sum() == 10  # all validation images
        top1 = 100 * matrix.trace() / matrix.sum()
        assert run.metrics()['top-1'] == pytest.approx(top1.item(), rel=1e-4)
        return
    if task == 'segmentation':
        assert list(run.per_class())[:2] == ['background', 'digit_0'] and np.nansum(values) > 0
    assert run.metrics()[TITLES[task]] == pytest.approx(np.nanmean(values), abs=0.06)


@pytest.fixture
def comparisons(tmp_path):
    """Segmentation from pretrained weights and from scratch, detection without the latter's AP."""
    return [
        compare(
            write_run(tmp_path / 'a', 'mmseg', {'mIoU': 33.25}),
            write_run(tmp_path / 'b', 'mmseg', {'mIoU': 40.0}, pretrained=False),
        ),
        compare(
            write_run(tmp_path / 'c', 'mmdet', DETECTION),
            write_run(tmp_path / 'd', 'mmdet', {}, pretrained=False),
        ),
    ]


def test_table_holds_the_last_validations(comparisons):
    found = rows(page_of(transfer_report.table_section(comparisons)))
    assert 'last validation, %|pretrained|from scratch|difference' in found
    assert 'segmentation: mIoU|33.2|40.0|-6.8' in found  # scratch may win
    assert 'detection: box AP|25.1|missing|missing' in found
    assert 'detection: mask AP|12.5|missing|missing' in found
    assert 'detection, from scratch: no validation in the log' in found


def test_what_is_missing_is_stated(comparisons):
    page = page_of(transfer_report.task_section(comparisons[1], 'cpu'))  # there is no checkpoint
    assert 'from scratch: no validation in the log' in page.texts
    for name in ('pretrained', 'from scratch'):
        assert any(text.startswith(f'{name}: no checkpoint') for text in page.texts)
    assert 'no numbers per class' in page.text
    assert len(page.pictures) == 1  # the curves


def test_unequal_runs_are_called_unfair(tmp_path):
    runs = [
        write_run(tmp_path / 'a', 'mmseg', {'mIoU': 1.0}),
        write_run(tmp_path / 'b', 'mmseg', {'mIoU': 1.0}, train_cfg=dict(max_iters=20)),
    ]
    found = compare(*runs)
    assert list(found.runs) == ['a', 'b']  # both pretrained: named after their folders
    (problem,) = found.problems
    assert 'differ in more than the initial weights: train_cfg.max_iters' in problem
    other = write_run(tmp_path / 'c', 'mmdet', {})
    with pytest.raises(ValueError, match='can only compare runs of the same task'):
        compare(runs[0], other)


def test_the_start_of_a_run_is_no_difference(tmp_path):
    runs = [
        write_run(tmp_path / 'a', 'mmseg', {'mIoU': 1.0}, work_dir='a', load_from='x.pth'),
        write_run(tmp_path / 'b', 'mmseg', {'mIoU': 1.0}, work_dir='b', pretrained=False),
    ]
    found = compare(*runs)
    assert found.fair and not found.problems and list(found.runs) == ['pretrained', 'from scratch']


def test_many_classes_are_cut_to_those_that_differ_most(tmp_path):
    names = [f'coco/c{i}_precision' for i in range(100)]
    folders = [
        write_run(tmp_path / 'a', 'mmdet', dict.fromkeys(names, 0.5)),
        write_run(tmp_path / 'b', 'mmdet', {n: i / 100 for i, n in enumerate(names)}),
    ]
    values = transfer_report.draw_classes(compare(*folders))
    assert (values['shown'], values['omitted']) == (24, 76)
    (axes,) = values['classes'].axes
    shown = [int(label.get_text()[1:]) for label in axes.get_xticklabels()]
    assert shown == sorted(shown) and set(range(12)) <= set(shown)  # 0.5 away, or nearly
    assert all(abs(i - 50) >= 38 for i in shown)


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
