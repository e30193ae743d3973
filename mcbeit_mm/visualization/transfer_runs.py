"""Read what a transfer run logged: curves, last validation, numbers per class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

from ..config import launch
from .logs import newest, read_scalars

TASKS = {'mmpretrain': 'classification', 'mmseg': 'segmentation', 'mmdet': 'detection'}
METRICS = {  # task -> logged name -> title
    'classification': {'accuracy/top1': 'top-1'},
    'segmentation': {'mIoU': 'mIoU'},
    'detection': {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'},
}
RECALLS = r'recall_classwise: \[(.*?)\]'  # by SingleLabelMetric(average=None)
IOU_TABLE = r'per class results:.*?\n((?:[+|][^\n]*\n)+)'  # by IoUMetric
PRECISION = re.compile('coco/(.+)_precision')  # by CocoMetric(classwise=True)


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
        """Logged values, all metrics in percent."""
        return [
            {key: 100 * value if key.startswith('coco/') else value for key, value in entry.items()}
            for entry in read_scalars(self.folder)
        ]

    @property
    def task(self) -> str:
        """One of the values of TASKS."""
        return TASKS[self.cfg.default_scope]

    @property
    def pretrained(self) -> bool:
        """Whether the run started from given weights."""
        loaded = self.cfg.get('load_from') and not self.cfg.get('resume')
        return bool(self.cfg.model.backbone.get('init_cfg') or loaded)

    @property
    def last(self) -> dict[str, float]:
        """Last logged value of each name."""
        return {key: value for entry in self.scalars for key, value in entry.items()}

    def per_class(self) -> dict[str, float]:
        """Return percent by class in the last validation; empty if the metrics log none.

        Accuracy, IoU or AP (masks if evaluated, else boxes). Classes of a classifier are numbers.
        """
        if self.task == 'classification':
            values = self._last_logged(RECALLS)
            return {str(i): float(v) for i, v in enumerate(values.split(','))} if values else {}
        if self.task == 'segmentation':
            return _iou_column(self._last_logged(IOU_TABLE).splitlines())
        matches = {PRECISION.fullmatch(key): value for key, value in self.last.items()}
        return {match[1]: value for match, value in matches.items() if match}

    def _last_logged(self, pattern: str) -> str:
        """Return the group of the last match in the logs, '' if there is none."""
        for file in sorted(self.folder.glob('*/*.log'), reverse=True):
            if found := re.findall(pattern, file.read_text(), re.DOTALL):
                return found[-1]
        return ''


def _iou_column(table: Sequence[str]) -> dict[str, float]:
    """Parse class -> IoU from the lines of IoUMetric's table."""
    rows = [[cell.strip() for cell in x.strip('|').split('|')] for x in table if '|' in x]
    return {row[0]: float(row[rows[0].index('IoU')]) for row in rows[1:]}
