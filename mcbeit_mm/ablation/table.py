"""Finished runs of an ablation -> what they measured, as JSON, a Markdown table and a plot."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config

from ..visualization.charts import spread_figure
from ..visualization.logs import read_scalars
from .plan import Run, changes_from, missing_steps, read_features, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {'knn': 'k-NN', 'linear': 'linear probe', 'finetune': 'fine-tuned'}  # top-1 in %
LOGGED = {'target_entropy': 'target entropy', 'kl': 'final KL'}  # nats, of the last training step


def measure(run: Run, finetune: Config | None = None) -> dict[str, float]:
    """Numbers of a run by name, as far as it has got; blocks are counted from 0."""
    values: dict[str, float] = {}
    features = read_features(run.folder)
    if features and 'evaluate' not in missing_steps(run):
        scores = features['models']['checkpoint']
        for method, block in scores['chosen'].items():
            values |= {
                method: scores['blocks'][str(block)][method],
                f'{method}_block': block,
            }
        values |= {f'{part}_images': features['data'][part] for part in ('train', 'val')}
        logged = _scalars(run.folder)
        values |= {
            key: found[-1] for key in LOGGED if (found := [e[key] for e in logged if key in e])
        }
    if finetune and 'finetune' not in missing_steps(run, finetune):
        top1 = [e['accuracy/top1'] for e in _scalars(run.folder / 'finetune')
                if 'accuracy/top1' in e]  # fmt: skip
        values |= {'finetune': max(top1)} if top1 else {}
    return values


def gather(runs: Sequence[Run], finetune: Config | None = None) -> dict:
    """Everything the table shows: `baseline`, and by config its `changes`, `seeds`, `missing`."""
    configs: dict[str, dict] = {}
    for run in runs:
        changes = [shortened(change) for change in changes_from(runs[0], run)]
        row = configs.setdefault(run.name, dict(changes=changes, seeds={}, missing=[]))
        if values := measure(run, finetune):
            row['seeds'][str(run.seed)] = values
        if missing_steps(run, finetune):
            row['missing'].append(run.seed)
    return dict(baseline=runs[0].name, configs=configs)


def column(row: Mapping, key: str) -> list[float]:
    """Values of a config, one per seed that has one."""
    return [values[key] for values in row['seeds'].values() if key in values]


def differences(baseline: Mapping, row: Mapping, key: str) -> list[float]:
    """What a config gains on the baseline, seed by seed, for the seeds that both have."""
    pairs = [(baseline['seeds'].get(seed, {}), values) for seed, values in row['seeds'].items()]
    return [new[key] - old[key] for old, new in pairs if key in old and key in new]


def spread(values: Sequence[float], digits: int = 2, sign: str = '') -> str:
    """Mean ± sample standard deviation; the value alone if there is one, '' if none."""
    if not values:
        return ''
    mean = f'{statistics.fmean(values):{sign}.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def markdown(results: Mapping) -> str:
    """The table, a row per config, and below it what is missing or hard to compare."""
    configs = results['configs']
    baseline = configs[results['baseline']]
    shown = [m for m in METRICS if any(column(row, m) for row in configs.values())]
    logged = [m for m in LOGGED if any(column(row, m) for row in configs.values())]
    titles = ['config', 'changes', 'seeds']
    for metric in shown:
        titles += [METRICS[metric], 'Δ']
    titles += ['block', *(LOGGED[metric] for metric in logged)]
    lines = [titles, ['---', '---', *['---:'] * (len(titles) - 2)]]
    for name, row in configs.items():
        complete = len(row['seeds']) - len([s for s in row['missing'] if str(s) in row['seeds']])
        wanted = len(set(map(str, row['missing'])) | set(row['seeds']))
        count = str(wanted) if complete == wanted else f'{complete} of {wanted}'
        cells = [f'`{name}`', '; '.join(row['changes']) or '–', count]
        for metric in shown:
            shift = differences(baseline, row, metric) if row is not baseline else []
            cells += [spread(column(row, metric)), spread(shift, sign='+')]
        cells.append(' / '.join(_blocks(column(row, f'{m}_block')) for m in ('knn', 'linear')))
        lines.append([*cells, *(spread(column(row, metric), 3) for metric in logged)])
    table = [' | '.join(cell.replace('|', r'\|') for cell in line) for line in lines]
    return '\n'.join([*(f'| {line} |' for line in table), '', *_notes(results)]) + '\n'


def figure(results: Mapping) -> 'Figure | None':
    """A panel per metric, a row per config; None if nothing is measured."""
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
    sizes: dict[tuple, list[str]] = {}
    for name, row in configs.items():
        for seed, values in row['seeds'].items():
            if 'train_images' in values:
                size = (values['train_images'], values['val_images'])
                sizes.setdefault(size, []).append(f'{name} seed {seed}')
    if len(sizes) == 1:
        notes.append('Features: {} images to train on, {} to test.'.format(*next(iter(sizes))))
    elif sizes:
        parts = [f'{train}/{val}: {", ".join(names)}' for (train, val), names in sizes.items()]
        notes.append(
            'NOT COMPARABLE: features were evaluated on different numbers of training/validation '
            f'images ({"; ".join(parts)}). Delete features.json of those to evaluate again.'
        )
    if missing := {name: row['missing'] for name, row in configs.items() if row['missing']}:
        count = sum(map(len, missing.values()))
        parts = [f'{name} (seed {", ".join(map(str, seeds))})' for name, seeds in missing.items()]
        notes.append(f'Missing or incomplete: {count} runs: {"; ".join(parts)}.')
    return [line for note in notes for line in (note, '')][:-1]


def _blocks(blocks: Sequence[float]) -> str:
    return ', '.join(map(str, sorted(set(blocks)))) or '–'


def _scalars(folder: Path) -> list[dict]:
    try:
        return read_scalars(folder)
    except FileNotFoundError:
        return []
