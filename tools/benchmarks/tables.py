"""Results as a table in Markdown."""

from benchmarks.measure import MIB, Fact

HEAD = ('case', 'side', 'ms', 'per s', 'time ratio', 'MiB', 'memory ratio', 'GFLOP', '% of matmul')


def as_markdown(results: list[dict], facts: list[Fact], environment: dict) -> str:
    """Environment, a row per side, and the facts as a list."""
    lines = [', '.join(f'{name} {value}' for name, value in environment.items()), '']
    if results:
        rows = [HEAD, ('---',) * len(HEAD), *rows_of(results)]
        lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
        lines.append('')
    lines += [f'- {fact.name}: {fact.value} {fact.unit} ({fact.how})' for fact in facts]
    return '\n'.join(lines) + '\n'


def rows_of(results: list[dict]) -> list[tuple[str, ...]]:
    """A row per side: medians, quartiles of the ratio, and whether the last side meets goals."""
    rows = []
    for result in results:
        sides = result['sides']
        (first, baseline), last = next(iter(sides.items())), list(sides)[-1]
        for side, found in sides.items():
            low, median, high = found['ratio']
            ratio = '1' if side == first else f'{median:.2f} ({low:.2f}-{high:.2f})'
            memory, peak = '', found.get('peak')
            if side != first and peak is not None and baseline.get('peak'):
                memory = f'{peak / baseline["peak"]:.2f}'
            if side == last:
                ratio += _verdict(median, result['goal'])
                memory += _verdict(float(memory), result['memory_goal']) if memory else ''
            rows.append(
                (
                    result['name'] if side == first else '',
                    side,
                    _number(found['seconds'][1], 1000),
                    _number(found['per_second']),
                    ratio,
                    _number(peak, 1 / MIB),
                    memory,
                    _number(found.get('gflop')),
                    _number(found.get('share'), 100),
                )
            )
    return rows


def _number(value: float | None, scale: float = 1) -> str:
    return '' if value is None else f'{value * scale:.4g}'


def _verdict(value: float, goal: float | None) -> str:
    if goal is None:
        return ''
    return f' [goal {goal:g}: {"met" if value <= goal else "missed"}]'
