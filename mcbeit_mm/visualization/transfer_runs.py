"""Work dir of a transfer run -> what it logged: curves, last validation, numbers per class."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from ..config import launch
from .logs import newest, read_scalars

TASKS = {'mmpretrain': 'classification', 'mmseg': 'segmentation', 'mmdet': 'detection'}
METRICS = {  # task -> logged name -> (title, factor to percent)
    'classification': {'accuracy/top1': ('top-1', 1)},
    'segmentation': {'mIoU': ('mIoU', 1)},
    'detection': {'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100)},
}
RECALLS = r'recall_classwise: \[(.*?)\]'  # by SingleLabelMetric(average=None)
IOU_TABLE = r'per class results:.*?\n((?:[+|][^\n]*\n)+)'  # by IoUMetric
CONFUSION = r'confusion_matrix/result:\s*tensor\((\[\[.*?\]\])\)'  # by ConfusionMatrix


@dataclass(frozen=True)
class TransferRun:
    """A work dir; ValueError unless its config is of one of the tasks and has validation data."""

    folder: Path

    def __post_init__(self):
        if self.cfg.get('default_scope') not in TASKS or not self.cfg.get('val_dataloader'):
            raise ValueError(
                f'{self.folder} is not a transfer run: expected a config with a val_dataloader '
                f'and a default_scope among {", ".join(TASKS)}'
            )

    @cached_property
    def cfg(self) -> Config:
        """The config that the run saved."""
        return launch.load_config(str(newest(self.folder, '*.py')))

    @cached_property
    def scalars(self) -> list[dict]:
        """What the run logged; empty if nothing."""
        try:
            return read_scalars(self.folder)
        except FileNotFoundError:
            return []

    @property
    def task(self) -> str:
        """One of the values of TASKS."""
        return TASKS[self.cfg.default_scope]

    @property
    def pretrained(self) -> bool:
        """Whether the run started from given weights."""
        loaded = self.cfg.get('load_from') and not self.cfg.get('resume')
        return bool(self.cfg.model.backbone.get('init_cfg') or loaded)

    def metrics(self) -> dict[str, float]:
        """Last logged validation, title -> percent, without metrics that were never logged."""
        return {
            title: factor * entry[name]
            for entry in self.scalars
            for name, (title, factor) in METRICS[self.task].items()
            if name in entry
        }

    def per_class(self) -> dict[str, float]:
        """Percent of each class in the last validation; empty if the metrics log none.

        Accuracy, IoU or AP (masks if evaluated, else boxes). Classes of a classifier are numbers.
        """
        if self.task == 'classification':
            values = self._last_logged(RECALLS)
            return {str(i): float(v) for i, v in enumerate(values.split(','))} if values else {}
        if self.task == 'segmentation':
            lines = [line for line in self._last_logged(IOU_TABLE).splitlines() if '|' in line]
            head, *rows = [[cell.strip() for cell in x.strip('|').split('|')] for x in lines or '|']
            return {row[0]: float(row[head.index('IoU')]) for row in rows}
        name = re.compile('coco/(.+)_precision')
        entry = {key: value for entry in self.scalars for key, value in entry.items()}
        return {found[1]: 100 * v for key, v in entry.items() if (found := name.fullmatch(key))}

    def confusion(self) -> Tensor | None:
        """Last confusion matrix, truth in rows; None if missing or abbreviated in the log."""
        text = self._last_logged(CONFUSION)
        return torch.tensor(json.loads(text)) if text and '...' not in text else None

    def _last_logged(self, pattern: str) -> str:
        """Group of the last match in the logs, '' if there is none."""
        for file in sorted(self.folder.glob('*/*.log'), reverse=True):
            if found := re.findall(pattern, file.read_text(), re.DOTALL):
                return found[-1]
        return ''
