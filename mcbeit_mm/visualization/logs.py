"""Find the logged scalars and the newest files of a work dir."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path


def newest(folder: Path, pattern: str) -> Path:
    """Return the most recently written file of a work dir; FileNotFoundError if there is none."""
    files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f'no {pattern} in {folder}, expected the work dir of a run')
    return files[-1]


def read_scalars(work_dir: str | os.PathLike) -> list[dict]:
    """Merge all <timestamp>/vis_data/scalars.json of a run into one dict per step, ascending.

    A resumed or restarted run replaces earlier entries from its first step on. An incomplete last
    line, left by a killed run, is dropped. A validation, logged with its epoch as `step`, is moved
    to the training step before it. FileNotFoundError if nothing was logged.
    """
    steps: dict[int, dict] = {}
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        read = [entry for entry in _entries(file) if 'step' in entry]
        trained = (entry['step'] for entry in read if 'lr' in entry or 'loss' in entry)
        first = min(trained, default=None)  # a run may begin with the evaluation that was due
        if first is not None:
            steps = {step: entry for step, entry in steps.items() if step < first}
        entries = _in_steps(read, max(steps, default=0))
        for entry in entries:
            steps.setdefault(entry['step'], {}).update(entry)
    if not steps:
        raise FileNotFoundError(
            f'no training log in {work_dir} (*/vis_data/scalars.json), expected the work dir of a '
            'run of tools/train.py'
        )
    return [steps[step] for step in sorted(steps)]


def curves(
    logs: Mapping[str, Sequence[Mapping]], titles: Mapping[str, str]
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return panels for `curves_figure`: title -> name of the log -> points (step, value).

    `titles` maps logged names to titles; names that no log has are skipped. ValueError if none
    remains.
    """
    panels = {}
    for key, title in titles.items():
        if any(key in entry for log in logs.values() for entry in log):
            panels[title] = {
                name: [(entry['step'], entry[key]) for entry in log if key in entry]
                for name, log in logs.items()
            }
    if not panels:
        raise ValueError(f'the log has none of {", ".join(titles)}')
    return panels


def _in_steps(entries: Iterable[dict], step: int) -> list[dict]:
    """Set the step of validations to that of the training before them, initially `step`."""
    placed = []
    for entry in entries:
        if 'lr' in entry:
            step = entry['step']
        elif 'data_time' in entry:  # a validation
            times = ('time', 'data_time')  # of validation steps
            entry = {key: value for key, value in entry.items() if key not in times}
            entry['step'] = max(step, entry['step'])
        placed.append(entry)
    return placed


def _entries(file: Path) -> Iterator[dict]:
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f'{file}, line {number} is not JSON: {error}') from error
