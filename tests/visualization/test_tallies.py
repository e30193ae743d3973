"""Numbers per class against slow references."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from mcbeit_mm.visualization import tallies


class Dataset:
    def __init__(self, classes):
        self.metainfo = dict(classes=classes)


def test_confusion_matrix_counts_truth_in_rows():
    from mmpretrain.structures import DataSample

    rng = np.random.default_rng(0)
    truths, scores = rng.integers(0, 3, 50), rng.random((50, 4))
    tally = tallies.ClassificationTally(Dataset('abcd'))
    samples = [
        DataSample().set_gt_label(int(label)).set_pred_score(torch.tensor(score))
        for label, score in zip(truths, scores, strict=True)
    ]
    tally.process(samples[:20])
    tally.process(samples[20:])
    metrics, per_class, matrix = tally.results()
    expected = np.zeros((4, 4))
    for truth, score in zip(truths, scores, strict=True):
        expected[truth, score.argmax()] += 1
    np.testing.assert_array_equal(matrix, expected)
    right = (scores.argmax(1) == truths).mean()
    assert metrics == {'top-1': pytest.approx(100 * right)}
    of_one = (scores.argmax(1) == truths)[truths == 1].mean()
    assert per_class['accuracy'][1] == pytest.approx(100 * of_one)
    assert np.isnan(per_class['accuracy'][3])  # class d does not occur


def test_iou_is_that_of_all_pixels_together():
    pytest.importorskip('mmseg')
    from mmseg.structures import SegDataSample

    rng = np.random.default_rng(0)
    truths, guesses = rng.integers(0, 3, (2, 5, 6, 7))
    truths[:, 0] = 255  # not scored
    guesses[:, 0] = 2
    tally = tallies.SegmentationTally(Dataset('abcd'))
    for truth, guess in zip(truths, guesses, strict=True):
        sample = SegDataSample(img_path='x')
        sample.gt_sem_seg = PixelData(data=torch.tensor(truth)[None])
        sample.pred_sem_seg = PixelData(data=torch.tensor(guess)[None])
        tally.process([sample])
    metrics, per_class, _ = tally.results()
    iou = []
    for label in range(3):
        both = either = 0
        for truth, guess in zip(truths.flat, guesses.flat, strict=True):
            both += truth == label and guess == label
            either += truth != 255 and label in (truth, guess)
        iou.append(100 * both / either)
    np.testing.assert_allclose(per_class['IoU'][:3], iou, rtol=1e-5)
    assert np.isnan(per_class['IoU'][3])
    assert metrics == {'mIoU': pytest.approx(np.mean(iou), rel=1e-5)}


def slow_ap(truths: list, guesses: list) -> float:
    """COCO's average precision of one class.

    truths: masks per image; guesses: (score, mask) per image. Masks are bool arrays.
    """
    values = []
    for threshold in np.linspace(0.5, 0.95, 10):
        found = []
        for wanted, given in zip(truths, guesses, strict=True):
            free = list(wanted)
            for score, mask in sorted(given, key=lambda pair: -pair[0]):
                iou = [(mask & other).sum() / (mask | other).sum() for other in free]
                hit = bool(iou) and max(iou) >= threshold
                if hit:
                    free.pop(int(np.argmax(iou)))
                found.append((score, hit))
        hits = np.array([hit for _, hit in sorted(found, key=lambda pair: -pair[0])])
        recall = hits.cumsum() / sum(map(len, truths))
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        for level in np.linspace(0, 1, 101):
            reached = precision[recall >= level]
            values.append(reached.max() if len(reached) else 0)
    return 100 * np.mean(values)


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    from mcbeit_mm.datasets.demo.layouts import DIGITS, make_demo_data

    register_all_modules(init_default_scope=False)
    root = tmp_path_factory.mktemp('data')
    make_demo_data(root, 10, 20, 64)
    return CocoDataset(
        data_root=str(root / 'detection'),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        metainfo=dict(classes=DIGITS),
        test_mode=True,
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )


def box_mask(box):
    mask = np.zeros((64, 64), bool)
    x1, y1, x2, y2 = box.astype(int)
    mask[y1:y2, x1:x2] = True
    return mask


def test_average_precision_of_each_class(coco):
    from mmdet.structures import DetDataSample

    rng = np.random.default_rng(0)
    tally = tallies.DetectionTally(coco)
    truths, guesses = {}, {}  # (kind, class) -> masks per image, (score, mask) per image
    keys = [(kind, label) for kind in ('bbox', 'segm') for label in range(10)]
    for item in (coco[i] for i in range(len(coco))):
        boxes, masks, labels = item['gt_bboxes'].numpy(), item['gt_masks'].masks, []
        moved, shifted = [], []
        for box, mask, label in zip(boxes, masks, item['gt_bboxes_labels'], strict=True):
            for _ in range(rng.integers(0, 4)):
                dx, dy = rng.integers(-3, 4, 2)
                moved.append(np.clip(box + (dx, dy, dx, dy), 0, 64))
                shifted.append(np.roll(mask, (dy, dx), (0, 1)).astype(bool))
                labels.append(label if rng.random() < 0.8 else (label + 1) % 10)
        scores = rng.permutation(1000)[: len(labels)] / 1000
        for kind, label in keys:
            shown = masks.astype(bool) if kind == 'segm' else [box_mask(box) for box in boxes]
            given = shifted if kind == 'segm' else [box_mask(box) for box in moved]
            own = item['gt_bboxes_labels'] == label
            truths.setdefault((kind, label), []).append([m for m, o in zip(shown, own) if o])  # noqa: B905
            guesses.setdefault((kind, label), []).append(
                [(s, m) for s, m, of in zip(scores, given, labels, strict=True) if of == label]
            )
        meta = dict(img_id=item['img_id'], ori_shape=(64, 64))
        sample = DetDataSample(metainfo=meta)
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor(np.array(moved).reshape(-1, 4), dtype=torch.float32),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.tensor(scores),
            masks=torch.tensor(np.array(shifted).reshape(-1, 64, 64)),
        )
        tally.process([sample])
    with tallies.quiet():
        metrics, per_class, _ = tally.results()
    for kind, title in (('bbox', 'box AP'), ('segm', 'mask AP')):
        expected = [slow_ap(truths[kind, label], guesses[kind, label]) for label in range(10)]
        assert np.std(expected) > 5
        np.testing.assert_allclose(per_class[title], expected, atol=0.06)  # mmdet rounds
        assert metrics[title] == pytest.approx(np.mean(expected), abs=0.06)


def test_no_detection_at_all_is_zero(coco):
    from mmdet.structures import DetDataSample

    tally = tallies.DetectionTally(coco)
    sample = DetDataSample(metainfo=dict(img_id=1, ori_shape=(64, 64)))
    sample.pred_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long),
        scores=torch.zeros(0), masks=torch.zeros(0, 64, 64, dtype=torch.bool),
    )  # fmt: skip
    tally.process([sample])
    metrics, per_class, _ = tally.results()
    assert metrics == {'box AP': 0, 'mask AP': 0} and not per_class['box AP'].any()
