"""Sections of the report that compare transfer runs, from pretrained weights and from scratch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope

from ..config.diff import differences, settings
from ..engine import resume
from .charts import curves_figure
from .logs import curves
from .page import Section
from .pretraining_run import load_model
from .transfer_runs import METRICS, TransferRun

MIN_SCORE = 0.2  # of a detection that is drawn
PER_CLASS = {'classification': 'accuracy', 'segmentation': 'IoU', 'detection': 'AP'}
START = ('work_dir', 'load_from', 'resume', 'model.backbone.init_cfg')  # may differ between runs
VISUALIZERS_OF = {  # task -> class, its settings, arguments of its method
    'classification': ('mmpretrain.UniversalVisualizer', {}, dict(resize=224)),
    'segmentation': ('mmseg.SegLocalVisualizer', dict(alpha=0.5), dict(with_labels=False)),
    'detection': ('mmdet.DetLocalVisualizer', dict(line_width=2), dict(pred_score_thr=MIN_SCORE)),
}
Runs = Mapping[str, TransferRun]  # of one task, by name


def transfer_sections(transfers: Sequence[Sequence[Path]], device: str) -> list[Section]:
    """Return a table of all transfers and a section per task; a transfer is a list of work dirs."""
    tasks = [named_runs(folders) for folders in transfers]
    return [table_section(tasks), *(task_section(runs, device) for runs in tasks)]


def named_runs(folders: Sequence[Path]) -> dict[str, TransferRun]:
    """Name the runs of one task by how they started, or by folder if that is ambiguous."""
    runs = [TransferRun(folder) for folder in folders]
    if len({run.task for run in runs}) > 1:
        tasks = ', '.join(f'{run.folder} ({run.task})' for run in runs)
        raise ValueError(f'can only compare runs of the same task, got {tasks}')
    names = ['pretrained' if run.pretrained else 'from scratch' for run in runs]
    if len(set(names)) < len(runs):
        names = [run.folder.name for run in runs]
    return dict(zip(names, runs, strict=True))


def table_section(tasks: Sequence[Runs]) -> Section:
    """Tabulate the last validation of all runs, and the settings in which their configs differ."""
    names = list(dict.fromkeys(name for runs in tasks for name in runs))
    rows, changed = [], []
    for runs in tasks:
        first, *others = runs.values()
        for key, title in METRICS[first.task].items():
            values = [runs[n].last.get(key, math.nan) if n in runs else math.nan for n in names]
            rows.append([f'{first.task}: {title}', *cells(values)])
        for run in others:
            changes = differences(settings(first.cfg), settings(run.cfg))
            keys = [change.name for change in changes if not change.name.startswith(START)]
            changed += [f'{first.task}: {key}' for key in keys]
    titles = ['last validation, %', *header(names)]
    values = dict(rows=rows, header=titles, changed=list(dict.fromkeys(changed)))
    return Section('transfer', 'Transfer', values)


def header(names: Sequence[str]) -> list[str]:
    """Return the titles of the columns of `cells`."""
    return [*names, 'difference'] if len(names) == 2 else [*names]


def cells(values: Sequence[float]) -> list[str]:
    """Format each value, and the difference of two; '–' for NaN."""
    signed = [(value, '') for value in values]
    if len(values) == 2:
        signed.append((values[0] - values[1], '+'))
    return ['–' if math.isnan(value) else f'{value:{sign}.1f}' for value, sign in signed]


def task_section(runs: Runs, device: str) -> Section:
    """Show predictions beside the truth, curves and numbers per class of one task."""
    task = next(iter(runs.values())).task
    titles = {key: f'validation: {title}, %' for key, title in METRICS[task].items()}
    logs = {name: run.scalars for name, run in runs.items()}
    pictures, legend = draw_samples(runs, device)
    values = dict(
        task=task,
        pictures=pictures,
        legend=legend,
        min_score=MIN_SCORE,
        curves=curves_figure(curves(logs, {'loss': 'training loss'} | titles), 'iteration'),
        classes=class_rows(runs),
        header=[f'{PER_CLASS[task]} per class, %', *header([*runs])],
    )
    return Section('task', task.capitalize(), values)


def class_rows(runs: Runs) -> list[list[str]]:
    """Return table rows of the logged numbers per class."""
    columns = [run.per_class() for run in runs.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *cells([column.get(name, math.nan) for column in columns])] for name in names]


def draw_samples(
    runs: Runs, device: str, count: int = 5
) -> tuple[dict[str, list[np.ndarray]], list[tuple[str, Sequence[int]]]]:
    """Draw random validation images by 'truth' and run; return (class, color) pairs as well."""
    pictures: dict[str, list[np.ndarray]] = {}
    for name, run in runs.items():
        meta, samples = predict_samples(run, device, count)
        if not pictures:
            pictures['truth'] = [draw(run.task, sample, meta, truth=True) for sample in samples]
        pictures[name] = [draw(run.task, sample, meta, truth=False) for sample in samples]
    palette = meta['palette'] if run.task == 'segmentation' else ()
    return pictures, list(zip(meta.get('classes') or (), palette, strict=False))


@torch.no_grad()
def predict_samples(run: TransferRun, device: str, count: int) -> tuple[Mapping, list]:
    """Return the metainfo of the validation set, and predictions on a fixed random choice of it."""
    init_default_scope(run.cfg.default_scope)
    model, _ = load_model(run.cfg, resume.find_checkpoint(run.folder))
    dataset = DATASETS.build(run.cfg.val_dataloader.dataset)
    picks = np.random.default_rng(0).permutation(len(dataset))[:count].tolist()
    batch = pseudo_collate([dataset[i] for i in picks])
    return dataset.metainfo, model.to(device).eval().val_step(batch)


def draw(task: str, sample: Any, meta: Mapping, truth: bool) -> np.ndarray:
    """Draw the labels or the prediction of a data sample: RGB (H, W, 3)."""
    name, options, arguments = VISUALIZERS_OF[task]
    visualizer = VISUALIZERS.get(name)(**options)
    paint = visualizer.visualize_cls if task == 'classification' else visualizer.add_datasample
    palette = None if task == 'detection' else meta.get('palette')  # None: mmdet's random colors
    visualizer.dataset_meta = dict(classes=meta.get('classes'), palette=palette)
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    arguments = arguments | dict(draw_gt=truth, draw_pred=not truth)
    paint(name='', image=image, data_sample=sample, **arguments)
    return visualizer.get_image()
