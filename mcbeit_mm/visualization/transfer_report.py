"""Transfer runs of the same task, from pretrained weights and from scratch -> report sections."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from .charts import classes_figure, compared_figure, confusion_figure
from .page import figure, note, table
from .report import Section
from .transfer_pictures import samples_table
from .transfer_runs import METRICS, Outcome, TransferRun, config_differences, evaluate

MOST = 24  # classes shown in one chart of bars
MISSING = 'missing'


@dataclass
class Comparison:
    """Runs of one task by name, how their models do, and what could not be found out."""

    task: str
    runs: dict[str, TransferRun]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def compare(runs: Sequence[TransferRun], device: str, max_images: int | None = None) -> Comparison:
    """Evaluate runs of one task; what is missing becomes a problem that the report states."""
    if len({run.task for run in runs}) > 1:
        tasks = ', '.join(f'{run.folder} ({run.task})' for run in runs)
        raise ValueError(f'only runs of the same task can be compared, got {tasks}')
    comparison = Comparison(runs[0].task, dict(zip(_names(runs), runs, strict=True)))
    for name, run in comparison.runs.items():
        try:
            outcome = comparison.outcomes[name] = evaluate(run, device, max_images=max_images)
        except FileNotFoundError as error:  # no checkpoint, no image
            comparison.problems.append(f'{name}: {error}')
            continue
        comparison.problems += _disagreements(
            name, run.metrics(), outcome, whole=max_images is None
        )
    for run in runs[1:]:
        if keys := config_differences(runs[0].cfg.to_dict(), run.cfg.to_dict()):
            comparison.problems.append(
                f'the comparison is not fair: the configs of {runs[0].folder} and {run.folder} '
                f'differ in more than the initial weights: {", ".join(keys[:8])}'
            )
    return comparison


def _names(runs: Sequence[TransferRun]) -> list[str]:
    starts = ['pretrained' if run.pretrained else 'from scratch' for run in runs]
    return starts if len(set(starts)) == len(runs) else [run.folder.name for run in runs]


def _disagreements(
    name: str, logged: Mapping[str, float], outcome: Outcome, whole: bool
) -> Iterator[str]:
    for title, value in outcome.metrics.items():
        if title not in logged:
            yield f'{name}: no {title} in the log: the run had no validation'
        elif whole and abs(logged[title] - value) > 0.15:
            yield (
                f'{name}: the log ends with {title} {logged[title]:.1f}, the checkpoint gives '
                f'{value:.1f}'
            )


def table_section(comparisons: Sequence[Comparison]) -> Section:
    """The last validation of all runs in one table, pretrained against scratch."""
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
    header = ['last validation, %', *names, *(['difference'] if len(names) == 2 else [])]
    text = (
        'The numbers are those that the runs logged, by the metrics of mmpretrain, mmseg and mmdet '
        '(AP: mean over IoU thresholds of 0.5 to 0.95).'
    )
    if 'from scratch' in names:
        text = (
            'The pretrained backbone, and the same one with random weights, were trained with '
            'labels for the same number of steps on the same images, by the same config; unless '
            f'noted, only the initial weights differ. {text}'
        )
    html = table(rows, header) + note(text) + _stated(comparisons)
    return Section('Transfer', html)


def _stated(comparisons: Sequence[Comparison]) -> str:
    problems = [f'{c.task}, {problem}' for c in comparisons for problem in c.problems]
    items = ''.join(f'<li>{escape(problem)}</li>' for problem in problems)
    return f'<p class="problem">Please note:</p><ul class="problem">{items}</ul>' if items else ''


def task_section(comparison: Comparison) -> Section:
    """Predictions beside the truth, curves, numbers per class and confusions of one task."""
    html = _stated([comparison])
    if comparison.outcomes:
        html += samples_table(comparison.task, comparison.outcomes)
    html += _curves(comparison)
    if comparison.outcomes:
        html += _per_class(comparison) + _confusion(comparison)
    return Section(comparison.task.capitalize(), html)


def _curves(comparison: Comparison) -> str:
    titles = {'loss': 'training loss'} | {
        name: f'validation: {title}, %' for name, (title, _) in METRICS[comparison.task].items()
    }
    panels = {}
    for key, title in titles.items():
        factor = METRICS[comparison.task].get(key, ('', 1))[1]
        lines = {}
        for name, run in comparison.runs.items():
            points = [(entry['step'], factor * entry[key]) for entry in run.scalars if key in entry]
            if points:
                lines[name] = points
        if any(len(points) > 1 for points in lines.values()):  # the table shows single values
            panels[title] = lines
    if not panels:
        return note('No curves: the runs logged nothing.')
    caption = (
        'The training loss is that of batches with random crops; the validation is what counts. '
        'Blue above grey: pretraining saves labels and steps.'
    )
    return figure(compared_figure(panels, 'iteration'), 'training and validation', caption)


def _per_class(comparison: Comparison) -> str:
    outcomes = comparison.outcomes
    first = next(iter(outcomes.values()))
    panels = {
        f'{title} of each class, %': {
            name: outcome.per_class[title]
            for name, outcome in outcomes.items()
            if title in outcome.per_class
        }
        for title in first.per_class
    }
    chosen, text = np.arange(len(first.classes)), ''
    if len(chosen) > MOST:
        shown = list(next(iter(panels.values())).values())
        gain = np.nan_to_num(shown[0] - shown[-1] if len(shown) > 1 else shown[0])
        order = gain.argsort(kind='stable')
        chosen = np.sort(np.concatenate([order[: MOST // 2], order[-MOST // 2 :]]))
        text = f' {MOST} of {len(first.classes)} classes, those that differ most either way.'
    panels = {
        title: {name: values[chosen] for name, values in lines.items()}
        for title, lines in panels.items()
    }
    caption = f'On {first.num_images} validation images, with the final weights.{text}'
    chart = classes_figure(panels, [first.classes[i] for i in chosen])
    return figure(chart, 'numbers per class', caption)


def _confusion(comparison: Comparison) -> str:
    matrices = {
        name: outcome.confusion
        for name, outcome in comparison.outcomes.items()
        if outcome.confusion is not None
    }
    if not matrices:
        return ''
    classes = next(iter(comparison.outcomes.values())).classes
    caption = (
        'Percent of the images of each true class (row) that were taken for each class (column); '
        'a perfect model fills the diagonal with 100.'
    )
    return figure(confusion_figure(matrices, classes), 'confusion matrix', caption)
