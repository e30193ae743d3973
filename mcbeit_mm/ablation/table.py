"""Summarize the runs of an ablation as JSON, a Markdown table and a plot."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..visualization.charts import spread_figure
from ..visualization.logs import read_scalars
from .plan import Run, changes_from

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {'knn': 'k-NN', 'linear': 'linear probe', 'finetune': 'fine-tuned'}  # top-1 in %
LOGGED = {'target_entropy': 'target entropy', 'kl': 'final KL'}  # nats, of the last training step


def measure(run: Run) -> dict[str, float]:
    """Return the results of a run so far by name; blocks are counted from 0."""
    values: dict[str, float] = {}
    if 'evaluate' not in run.missing:
        scores, images = run.features['models']['checkpoint'], run.features['data']
        for method, block in scores['chosen'].items():
            values |= {method: scores['blocks'][str(block)][method], f'{method}_block': block}
        values |= {f'{part}_images': images[part] for part in ('train', 'val')}
        values |= {key: logged[-1] for key in LOGGED if (logged := _logged(run.folder, key))}
    if run.finetune and 'finetune' not in run.missing:
        if top1 := _logged(run.finetune.folder, 'accuracy/top1'):
            values['finetune'] = max(top1)
    return values


def gather(runs: Sequence[Run]) -> dict:
    """Return the name of the `baseline`, and `changes`, `seeds`, `missing` of each config."""
    configs: dict[str, dict] = {}
    for run in runs:
        row = dict(changes=changes_from(runs[0], run), seeds={}, missing=[])
        row = configs.setdefault(run.name, row)
        if values := measure(run):
            row['seeds'][str(run.seed)] = values
        if run.missing:
            row['missing'].append(run.seed)
    return dict(baseline=runs[0].name, configs=configs)


def column(row: Mapping, key: str) -> list[float]:
    """Return the values of a config, one for each seed that has one."""
    return [values[key] for values in row['seeds'].values() if key in values]


def gains(baseline: Mapping, row: Mapping, key: str) -> list[float]:
    """Return the differences to the baseline for the seeds that both have."""
    pairs = [(baseline['seeds'].get(seed, {}), values) for seed, values in row['seeds'].items()]
    return [new[key] - old[key] for old, new in pairs if key in old and key in new]


def spread(values: Sequence[float], digits: int = 2, sign: str = '') -> str:
    """Format mean ± sample standard deviation, or a single value, or ''."""
    if not values:
        return ''
    mean = f'{statistics.fmean(values):{sign}.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def markdown(results: Mapping) -> str:
    """Format a table with a row for each config, and notes on missing and incomparable runs."""
    configs = results['configs']
    baseline = configs[results['baseline']]
    metrics, logged = (
        [key for key in keys if any(column(row, key) for row in configs.values())]
        for keys in (METRICS, LOGGED)
    )
    titles = ['config', 'changes', 'seeds']
    titles += [title for metric in metrics for title in (METRICS[metric], 'Δ')]
    titles += ['block', *(LOGGED[key] for key in logged)]
    lines = [titles, ['---', '---', *['---:'] * (len(titles) - 2)]]
    for name, row in configs.items():
        seeds, missing = set(row['seeds']), set(map(str, row['missing']))
        count, total = len(seeds - missing), len(seeds | missing)
        cells = [f'`{name}`', '; '.join(row['changes']) or '–']
        cells.append(str(total) if count == total else f'{count} of {total}')
        for metric in metrics:
            shift = gains(baseline, row, metric) if row is not baseline else []
            cells += [spread(column(row, metric)), spread(shift, sign='+')]
        cells.append(' / '.join(_blocks(column(row, f'{m}_block')) for m in ('knn', 'linear')))
        lines.append([*cells, *(spread(column(row, key), 3) for key in logged)])
    table = [' | '.join(cell.replace('|', r'\|') for cell in line) for line in lines]
    return '\n'.join([*(f'| {line} |' for line in table), '', '\n\n'.join(_notes(results))]) + '\n'


def figure(results: Mapping) -> 'Figure | None':
    """Plot a panel for each metric with a row for each config; None without results."""
    configs = results['configs']
    panels = {
        f'{title}, top-1 in %': {name: column(row, metric) for name, row in configs.items()}
        for metric, title in METRICS.items()
        if any(column(row, metric) for row in configs.values())
    }
    return spread_figure(panels) if panels else None


def _notes(results: Mapping) -> list[str]:
    configs = results['configs']
    notes = [
        'Mean ± sample standard deviation over the seeds; a single run has no spread. Δ is the '
        f'difference to `{results["baseline"]}` with the same seed. Accuracies are top-1 in %; '
        'block: that of k-NN / linear probe, from 0, chosen on held-out training images.'
    ]
    sizes = {
        f'{name} seed {seed}': f'{values["train_images"]}/{values["val_images"]}'
        for name, row in configs.items()
        for seed, values in row['seeds'].items()
        if 'train_images' in values
    }
    if len(set(sizes.values())) > 1:
        notes.append(
            'NOT COMPARABLE: features were evaluated on different numbers of training/validation '
            f'images ({"; ".join(f"{run}: {size}" for run, size in sizes.items())}). Delete their '
            'features.json to evaluate them again.'
        )
    elif sizes:
        notes.append(f'Features: {min(sizes.values())} training/validation images.')
    if missing := {name: row['missing'] for name, row in configs.items() if row['missing']}:
        count = sum(map(len, missing.values()))
        parts = [f'{name} (seed {", ".join(map(str, seeds))})' for name, seeds in missing.items()]
        notes.append(f'Missing or incomplete: {count} runs: {"; ".join(parts)}.')
    return notes


def _blocks(blocks: Sequence[float]) -> str:
    return ', '.join(map(str, sorted(set(blocks)))) or '–'


def _logged(folder: Path, key: str) -> list[float]:
    try:
        return [entry[key] for entry in read_scalars(folder) if key in entry]
    except FileNotFoundError:
        return []
