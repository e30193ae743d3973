"""Predictions on a validation set -> the libraries' metrics, of all images and of each class."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what data sets and pycocotools print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class ClassificationTally:
    """Top-1 accuracy of all images and of each class, and the confusion matrix."""

    def __init__(self, dataset):
        self.num_classes = len(dataset.metainfo['classes'])
        self.truths: list[Tensor] = []
        self.guesses: list[Tensor] = []

    def process(self, outputs: list) -> None:
        """Take in data samples of mmpretrain."""
        self.truths += [sample.gt_label.cpu() for sample in outputs]
        self.guesses += [sample.pred_score.argmax().view(1).cpu() for sample in outputs]

    def results(self) -> tuple[dict, dict, np.ndarray]:
        """Metrics, numbers per class, confusion matrix."""
        from mmpretrain.evaluation import ConfusionMatrix

        labels = torch.cat(self.guesses), torch.cat(self.truths)
        matrix = ConfusionMatrix.calculate(*labels, num_classes=self.num_classes).numpy()
        accuracy = percent(matrix.diagonal(), matrix.sum(axis=1))
        return {'top-1': 100 * matrix.trace() / matrix.sum()}, {'accuracy': accuracy}, matrix


class SegmentationTally:
    """IoU of each class over all pixels, and its mean, by mmseg's IoUMetric."""

    def __init__(self, dataset):
        from mmseg.evaluation import IoUMetric

        self.metric = IoUMetric()
        self.metric.dataset_meta = dataset.metainfo

    def process(self, outputs: list) -> None:
        """Take in data samples of mmseg."""
        self.metric.process({}, [sample.to_dict() for sample in outputs])

    def results(self) -> tuple[dict, dict, None]:
        """Metrics, numbers per class, no confusion matrix."""
        intersection, union, *_ = (
            sum(areas).numpy() for areas in zip(*self.metric.results, strict=True)
        )
        iou = percent(intersection, union)
        return {'mIoU': float(np.nanmean(iou))}, {'IoU': iou}, None


class DetectionTally:
    """Average precision of boxes and masks, by mmdet's CocoMetric."""

    def __init__(self, dataset):
        from mmdet.evaluation import CocoMetric

        self.dataset, self.metrics = dataset, {}
        for kind, title in (('bbox', 'box AP'), ('segm', 'mask AP')):
            with quiet():
                metric = CocoMetric(dataset.ann_file, metric=kind, classwise=True)
            metric.dataset_meta = dataset.metainfo
            metric.img_ids = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
            self.metrics[kind, title] = metric

    def process(self, outputs: list) -> None:
        """Take in data samples of mmdet."""
        for metric in self.metrics.values():
            metric.process({}, [sample.to_dict() for sample in outputs])

    def results(self) -> tuple[dict, dict, None]:
        """Metrics, numbers per class, no confusion matrix."""
        overall, per_class = {}, {}
        for (kind, title), metric in self.metrics.items():
            found = metric.compute_metrics(metric.results)  # {} if there is no detection at all
            overall[title] = 100 * found.get(f'{kind}_mAP', 0.0)
            names = (f'{name}_precision' for name in self.dataset.metainfo['classes'])
            per_class[title] = 100 * np.array([float(found.get(name, 0.0)) for name in names])
        return overall, per_class, None


TALLIES = dict(
    classification=ClassificationTally, segmentation=SegmentationTally, detection=DetectionTally
)


def percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 * part / whole, nan where whole is 0."""
    return 100 * np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
