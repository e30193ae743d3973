"""Work dir of a transfer run -> what it logged, and how its model does on each class and image.

Runs are those of tools/train.py in the scopes of mmpretrain, mmseg and mmdet. The model is run over
the validation images once more: the logs hold no numbers per class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from ..config import launch
from ..engine import resume
from ..weights.reading import read_checkpoint, state_dict_of
from .logs import newest, read_scalars
from .tallies import TALLIES, quiet

TASKS = {'mmpretrain': 'classification', 'mmseg': 'segmentation', 'mmdet': 'detection'}
METRICS = {  # task -> logged name -> (title, factor to percent)
    'classification': {'accuracy/top1': ('top-1', 1)},
    'segmentation': {'mIoU': ('mIoU', 1)},
    'detection': {'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100)},
}


@dataclass(frozen=True)
class TransferRun:
    """A work dir; ValueError unless its config is of one of the tasks and has validation data."""

    folder: Path

    def __post_init__(self):
        if self.cfg.get('default_scope') not in TASKS or not self.cfg.get('val_dataloader'):
            raise ValueError(
                f'{self.folder} is no transfer run: its config needs a default_scope of '
                f'{", ".join(TASKS)} and a val_dataloader'
            )

    @cached_property
    def config_file(self) -> Path:
        """The config that the run left in its work dir."""
        return newest(self.folder, '*.py')

    @cached_property
    def cfg(self) -> Config:
        """Its content."""
        return launch.load_config(str(self.config_file))

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
        cfg = self.cfg
        given = cfg.get('load_from') and not cfg.get('resume')
        return bool(cfg.model.backbone.get('init_cfg') or given)

    def metrics(self) -> dict[str, float]:
        """The last validation in the log, title -> percent; lacks what was never logged."""
        found = {}
        for entry in self.scalars:
            for name, (title, factor) in METRICS[self.task].items():
                if name in entry:
                    found[title] = factor * entry[name]
        return found


def config_differences(first: Mapping, second: Mapping) -> list[str]:
    """Keys in which two configs differ, apart from the initial weights and folders of results."""

    def flatten(node: object, name: str) -> Iterator[tuple[str, object]]:
        items = node.items() if isinstance(node, Mapping) else None
        if items is None and isinstance(node, list | tuple):
            items = enumerate(node)
        if not items or name.endswith('init_cfg'):
            yield name, node
            return
        for key, value in items:
            yield from flatten(value, f'{name}.{key}' if name else str(key))

    ignored = ('work_dir', 'load_from', 'resume', 'model.backbone.init_cfg')
    flat = [dict(flatten(cfg, '')) for cfg in (first, second)]
    return [
        key
        for key in dict.fromkeys([*flat[0], *flat[1]])
        if key not in ignored and flat[0].get(key, ...) != flat[1].get(key, ...)
    ]


@dataclass
class Outcome:
    """What a model says about the validation images.

    `metrics` as in `TransferRun.metrics`; `per_class` title -> percent of each of the `classes`,
    nan where a class does not occur; `confusion` (classes, classes) counts images by truth and
    prediction (classification only); `samples` are the library's data samples by image path.
    """

    classes: tuple[str, ...]
    num_images: int
    metrics: dict[str, float]
    per_class: dict[str, np.ndarray]
    confusion: np.ndarray | None = None
    samples: dict[str, Any] = field(default_factory=dict)


def load_model(run: TransferRun, device: str) -> torch.nn.Module:
    """The trained model of a run, in eval mode."""
    init_default_scope(run.cfg.default_scope)
    file = resume.find_checkpoint(run.folder)
    cfg = Config(dict(model=run.cfg.model)).copy().model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg)
    try:
        model.load_state_dict(state_dict_of(read_checkpoint(file)))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'{file} does not fit {run.config_file}: {str(error)[:400]}') from error
    return model.to(device).eval()


@torch.no_grad()
def evaluate(
    run: TransferRun, device: str, num_samples: int = 6, max_images: int | None = None
) -> Outcome:
    """Run the model over its validation images, or `max_images` of them, always the same."""
    model = load_model(run, device)
    loader_cfg = run.cfg.val_dataloader.copy()
    loader_cfg.update(num_workers=0, persistent_workers=False, pin_memory=False)
    with quiet():
        loader = Runner.build_dataloader(loader_cfg)
    dataset = loader.dataset
    order = np.random.default_rng(0).permutation(len(dataset))
    if max_images is not None and max_images < len(dataset):
        dataset.get_subset_(np.sort(order[:max_images]).tolist())
        order = np.random.default_rng(0).permutation(len(dataset))
    kept, samples, first = set(order[:num_samples].tolist()), {}, 0
    if not dataset.metainfo.get('classes'):  # lists of images name none
        dataset._metainfo['classes'] = tuple(map(str, range(run.cfg.model.head.num_classes)))
    tally = TALLIES[run.task](dataset)
    for batch in loader:
        outputs = model.val_step(batch)
        tally.process(outputs)
        for i, output in enumerate(outputs, start=first):
            if i in kept:
                samples[output.img_path] = output.cpu()
        first += len(outputs)
    with quiet():
        metrics, per_class, confusion = tally.results()
    classes = tuple(dataset.metainfo['classes'])
    return Outcome(classes, len(dataset), metrics, per_class, confusion, samples)
