"""Work dir of a run -> the scalars that it logged, the files that it left."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def newest(folder: Path, pattern: str) -> Path:
    """Return the file of a work dir written last; FileNotFoundError if there is none."""
    files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f'no {pattern} in {folder}: give the work dir of a run')
    return files[-1]


def read_scalars(work_dir: str | os.PathLike) -> list[dict]:
    """What a run logged, one dict per step, ascending, from all <timestamp>/vis_data/scalars.json.

    A resumed or restarted run replaces what earlier ones logged from its first step on. Half a
    last line, as a killed run leaves it, is dropped. What a validation logs counts for the
    training step before it: MMEngine writes its epoch as `step`. FileNotFoundError if nothing was
    logged.
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
            f'no training log below {work_dir} (looked for */vis_data/scalars.json): give the '
            'work dir of a run of tools/train.py'
        )
    return [steps[step] for step in sorted(steps)]


def _is_validation(entry: dict) -> bool:
    return 'lr' not in entry and 'data_time' in entry


def _in_steps(entries: Iterable[dict], step: int) -> list[dict]:
    """Give validations, known by the missing learning rate, the step of training they follow.

    A resumed run may begin with one, which follows `step` of the run before.
    """
    placed = []
    for entry in entries:
        if 'lr' in entry:
            step = entry['step']
        elif _is_validation(entry):
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
                raise ValueError(f'{file}, line {number} is no JSON: {error}') from error
