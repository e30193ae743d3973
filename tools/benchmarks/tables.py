"""Results as text: columns for the terminal, or a table in Markdown."""

from benchmarks.measure import MIB

HEAD = ('case', 'side', 'ms', 'per s', 'time ratio', 'MiB', 'memory ratio', 'GFLOP', '% of matmul')


def rows_of(results: list[dict]) -> list[tuple[str, ...]]:
    """A row per side: medians, quartiles of the ratio, what the goals say of the last side."""
    rows = []
    for result in results:
        sides = result['sides']
        first, last = list(sides.values())[0], list(sides)[-1]
        for place, (side, found) in enumerate(sides.items()):
            ratio, memory = '1', ''
            if place:
                low, median, high = found['ratio']
                ratio = f'{median:.2f} ({low:.2f}-{high:.2f})'
                if found.get('peak') is not None and first.get('peak'):
                    memory = f'{found["peak"] / first["peak"]:.2f}'
            if side == last:
                ratio += _verdict(found['ratio'][1], result['goal'])
                if memory:
                    memory += _verdict(float(memory), result['memory_goal'])
            rows.append(
                (
                    '' if place else result['name'],
                    side,
                    f'{found["seconds"][1] * 1000:.4g}',
                    f'{found["per_second"]:.4g}',
                    ratio,
                    _number(found.get('peak'), 1 / MIB),
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


def as_text(results: list[dict], facts: list[dict]) -> str:
    """Columns padded to their widest entry."""
    rows = [HEAD, *rows_of(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows] if results else []
    lines += [f'{f["name"]}: {f["value"]} {f["unit"]}  ({f["how"]})' for f in facts]
    return '\n'.join(lines)


def as_markdown(results: list[dict], facts: list[dict], environment: dict) -> str:
    """A table, the facts as a list, and where they come from."""
    lines = [', '.join(f'{name} {value}' for name, value in environment.items()), '']
    if results:
        rows = [HEAD, ('---',) * len(HEAD), *rows_of(results)]
        lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
        lines.append('')
    lines += [f'- {f["name"]}: {f["value"]} {f["unit"]} ({f["how"]})' for f in facts]
    return '\n'.join(lines) + '\n'
