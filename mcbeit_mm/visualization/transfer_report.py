"""Sections of the report that compare transfer runs, from pretrained weights and from scratch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmpretrain.evaluation import ConfusionMatrix
from torch import Tensor

from ..config.diff import differences, settings
from ..engine import resume
from .charts import classes_figure, curves_figure
from .page import Section
from .pretraining_run import load_model
from .transfer_runs import METRICS, TransferRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 24  # in a bar chart
MIN_SCORE = 0.2  # of a detection that is drawn
MISSING = 'missing'
PER_CLASS = {'classification': 'accuracy', 'segmentation': 'IoU', 'detection': 'AP'}
START = ('work_dir', 'load_from', 'resume', 'model.backbone.init_cfg')  # may differ between runs
VISUALIZERS_OF = {  # task -> class, its settings, arguments of its method
    'classification': ('mmpretrain.UniversalVisualizer', {}, dict(resize=224)),
    'segmentation': ('mmseg.SegLocalVisualizer', dict(alpha=0.5), dict(with_labels=False)),
    'detection': ('mmdet.DetLocalVisualizer', dict(line_width=2), dict(pred_score_thr=MIN_SCORE)),
}


@dataclass
class Comparison:
    """Runs of one task by name, and the problems that the report states.

    `fair` if the runs differ only in their initial weights.
    """

    task: str
    runs: dict[str, TransferRun]
    fair: bool = True
    problems: list[str] = field(default_factory=list)


def transfer_sections(transfers: Sequence[Sequence[Path]], device: str) -> list[Section]:
    """A table of all transfers, then a section per task; each transfer is a list of work dirs."""
    comparisons = [compare([TransferRun(folder) for folder in folders]) for folders in transfers]
    tasks = [task_section(comparison, device) for comparison in comparisons]
    return [table_section(comparisons), *tasks]


def compare(runs: Sequence[TransferRun]) -> Comparison:
    """Name the runs of one task; a difference of their configs and a missing log are problems."""
    if len({run.task for run in runs}) > 1:
        tasks = ', '.join(f'{run.folder} ({run.task})' for run in runs)
        raise ValueError(f'can only compare runs of the same task, got {tasks}')
    names = ['pretrained' if run.pretrained else 'from scratch' for run in runs]
    if len(set(names)) < len(runs):
        names = [run.folder.name for run in runs]
    comparison = Comparison(runs[0].task, dict(zip(names, runs, strict=True)))
    for name, run in comparison.runs.items():
        changes = differences(settings(runs[0].cfg), settings(run.cfg))
        keys = [change.name for change in changes if not change.name.startswith(START)]
        if keys:
            comparison.fair = False
            comparison.problems.append(
                f'{names[0]} and {name} differ in more than the initial weights: '
                f'{", ".join(keys[:8])}'
            )
        if not run.metrics():
            comparison.problems.append(f'{name}: no validation in the log')
    return comparison


def table_section(comparisons: Sequence[Comparison]) -> Section:
    """Last validation of all runs in one table."""
    names = list(dict.fromkeys(name for c in comparisons for name in c.runs))
    rows = []
    for comparison in comparisons:
        runs = [comparison.runs.get(name) for name in names]
        logged = [run.metrics() if run else {} for run in runs]
        for title, _ in METRICS[comparison.task].values():
            values = [metrics.get(title) for metrics in logged]
            cells = [MISSING if value is None else f'{value:.1f}' for value in values]
            if len(names) == 2:
                cells.append(MISSING if None in values else f'{values[0] - values[1]:+.1f}')
            rows.append([f'{comparison.task}: {title}', *cells])
    values = dict(
        rows=rows,
        header=['last validation, %', *names, *(['difference'] if len(names) == 2 else [])],
        problems=[f'{c.task}, {problem}' for c in comparisons for problem in c.problems],
        fair='from scratch' in names and all(c.fair for c in comparisons),
    )
    return Section('transfer', 'Transfer', values)


def task_section(comparison: Comparison, device: str) -> Section:
    """Predictions beside the truth, curves, numbers per class and confusions of one task."""
    samples = draw_samples(comparison, device)  # may add problems
    values = dict(
        task=comparison.task,
        problems=comparison.problems,
        min_score=MIN_SCORE,
        curves=draw_curves(comparison),
        confusions={
            name: draw_confusion(matrix)
            for name, run in comparison.runs.items()
            if (matrix := run.confusion()) is not None
        },
        **samples,
        **draw_classes(comparison),
    )
    return Section('task', comparison.task.capitalize(), values)


def draw_samples(comparison: Comparison, device: str, count: int = 5) -> dict[str, Any]:
    """Random validation images, drawn by the task's library, and a legend of segmentation.

    `pictures` by name: 'truth', then each run.
    """
    pictures: dict[str, list[np.ndarray]] = {}
    legend: list[tuple[str, Sequence[int]]] = []
    for name, run in comparison.runs.items():
        try:
            meta, samples = predict_samples(run, device, count)
        except FileNotFoundError as error:  # checkpoint or images
            comparison.problems.append(f'{name}: {error}')
            continue
        if not pictures:
            pictures['truth'] = [draw(run.task, sample, meta, truth=True) for sample in samples]
            if run.task == 'segmentation':
                legend = list(zip(meta['classes'], meta['palette'], strict=True))[:MAX_CLASSES]
        pictures[name] = [draw(run.task, sample, meta, truth=False) for sample in samples]
    return dict(pictures=pictures, legend=legend)


@torch.no_grad()
def predict_samples(run: TransferRun, device: str, count: int) -> tuple[Mapping, list]:
    """Meta data of the validation set, and data samples of a fixed random choice of its images."""
    init_default_scope(run.cfg.default_scope)
    model, _ = load_model(run.cfg, resume.find_checkpoint(run.folder))
    dataset = DATASETS.build(run.cfg.val_dataloader.dataset)
    picks = np.random.default_rng(0).permutation(len(dataset))[:count].tolist()
    batch = pseudo_collate([dataset[i] for i in picks])
    return dataset.metainfo, model.to(device).eval().val_step(batch)


def draw(task: str, sample: Any, meta: Mapping, truth: bool) -> np.ndarray:
    """Image (H, W, 3) with the labels or the prediction of a data sample."""
    name, options, arguments = VISUALIZERS_OF[task]
    visualizer = VISUALIZERS.get(name)(**options)
    paint = visualizer.visualize_cls if task == 'classification' else visualizer.add_datasample
    palette = None if task == 'detection' else meta.get('palette')  # None: mmdet's random colors
    visualizer.dataset_meta = dict(classes=meta.get('classes'), palette=palette)
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    arguments = arguments | dict(draw_gt=truth, draw_pred=not truth)
    paint(name='', image=image, data_sample=sample, **arguments)
    return visualizer.get_image()


def draw_curves(comparison: Comparison) -> 'Figure | None':
    """Training loss and validations of all runs; None if there is nothing but single values."""
    panels = {}
    for key, (title, factor) in ({'loss': ('training loss', 1)} | METRICS[comparison.task]).items():
        lines = {
            name: [(entry['step'], factor * entry[key]) for entry in run.scalars if key in entry]
            for name, run in comparison.runs.items()
        }
        if any(len(points) > 1 for points in lines.values()):
            title = title if key == 'loss' else f'validation: {title}, %'
            panels[title] = {name: points for name, points in lines.items() if points}
    return curves_figure(panels, 'iteration') if panels else None


def draw_confusion(matrix: Tensor) -> 'Figure':
    """Chart of a confusion matrix (classes, classes) of counts, truth in rows."""
    import matplotlib.pyplot as plt

    figure = ConfusionMatrix.plot(
        matrix, include_values=len(matrix) <= 12, cmap='Blues', colorbar=False, show=False
    )
    plt.close(figure)  # else pyplot keeps it
    figure.set_size_inches(5.5, 5.5)
    figure.set_layout_engine('constrained')
    return figure


def draw_classes(comparison: Comparison) -> dict[str, Any]:
    """Bars of the logged numbers per class, of the MAX_CLASSES that differ most."""
    runs = {name: run.per_class() for name, run in comparison.runs.items()}
    runs = {name: values for name, values in runs.items() if values}
    if not runs:
        return dict(classes=None, shown=0, omitted=0)
    classes = list(next(iter(runs.values())))
    table = np.array([[values.get(c, np.nan) for c in classes] for values in runs.values()])
    gain = np.nan_to_num(np.abs(table[0] - table[-1]) if len(table) > 1 else table[0])
    chosen = np.sort((-gain).argsort(kind='stable')[:MAX_CLASSES])
    lines = dict(zip(runs, table[:, chosen], strict=True))
    title = f'{PER_CLASS[comparison.task]} of each class, %'
    chart = classes_figure(title, lines, [classes[i] for i in chosen])
    return dict(classes=chart, shown=len(chosen), omitted=len(classes) - len(chosen))
