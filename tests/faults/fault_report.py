"""The result of a campaign as a table."""

from collections.abc import Iterable

from run_state import PHASES


def summary(result: dict) -> dict:
    """Count faults by kind and phase, and what must be zero."""
    rows: dict[str, dict] = {}
    for entry in result['launches']:
        if entry['hit']:
            row = rows.setdefault(entry['fault'], dict.fromkeys(PHASES[:4], 0) | dict(lost=0))
            phase = entry['phase'] if entry['phase'] in row else PHASES[1]
            row[phase] += 1
            row['lost'] = max(row['lost'], 0 if entry['damaged'] else entry['lost'])
    cases = result['corruption']['cases'].values()
    return dict(
        faults=dict(sorted(rows.items())),
        hits=sum(entry['hit'] for entry in result['launches']),
        launches=len(result['launches']),
        real=sum(entry['real'] for entry in result['launches']),
        orphans=sum(entry['orphans'] for entry in result['launches']),
        files=sum(sum(verdicts.values()) for verdicts in cases),
        files_detected=sum(verdicts.get('detected', 0) for verdicts in cases),
        files_harmless=sum(verdicts.get('harmless', 0) for verdicts in cases),
        silent=result['corruption']['silent'],
        lost=_most(entry for entry in result['launches'] if not entry['damaged']),
        damaged=sum(bool(entry['damaged']) for entry in result['launches']),
        lost_after_damage=_most(entry for entry in result['launches'] if entry['damaged']),
    )


def as_table(result: dict, markdown: bool = False) -> str:
    """Format faults by kind and phase, then a line for each other part."""
    s = result['summary']
    head = ['fault', *PHASES[:4], 'lost at most']
    rows = [[name, *(str(row[key]) for key in (*PHASES[:4], 'lost'))]
            for name, row in s['faults'].items()]  # fmt: skip
    table = _markdown(head, rows) if markdown else _aligned(head, rows)
    lines = [
        table,
        '',
        f'{s["hits"]} faults in {result["lives"]} runs ({s["launches"]} starts, {s["real"]} by a '
        f'real subprocess; {s["orphans"]} orphaned processes reaped), seed {result["seed"]}.',
        f'Iterations lost at most: {s["lost"]}, with a checkpoint every {result["interval"]}; '
        f'{s["lost_after_damage"]} in the {s["damaged"]} cases where the newest checkpoint or '
        'last_checkpoint was damaged as well before resuming.',
        f'Damaged files: {s["files"]}, {s["files_detected"]} detected, {s["files_harmless"]} '
        f'harmless (same content), {s["silent"]} used silently; {result["corruption"]["notes"]} '
        'damaged last_checkpoint files.',
        f'Full disk: {result["disk"]["runs"]} runs, {result["disk"]["way"]}.',
        f'Problems: {len(result["problems"])}. {result["seconds"] / 60:.1f} minutes.',
        *(f'- {line}' for line in result['problems']),
    ]
    return '\n'.join(lines)


def _most(entries: Iterable[dict]) -> int:
    return max((entry['lost'] for entry in entries), default=0)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *rows])


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append('  '.join(cells))
    return '\n'.join(lines)
