"""Print constraints.txt with the torch and torchvision that this environment has, if it has them.

Pinned like that, pip cannot replace a CUDA build that the user chose. Exit status 1, and what to do,
if the two do not work together or are too old.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from doctor import FAIL, check_distribution, check_torchvision, first_line, version

CONSTRAINTS = Path(__file__).parents[1] / 'constraints.txt'


def canonical(requirement: str) -> str:
    """Return the package a requirement names, as constraints.txt spells it."""
    name = re.match(r'[\w.-]*', requirement)[0]
    return re.sub(r'[-_.]+', '-', name).lower()


def problems() -> list[str]:
    """Return what is wrong with the installed torch and torchvision, one line each."""
    lines = [*check_distribution('torch', '2.6'), *check_torchvision()]
    return [f'{name} {text}' for level, name, text in lines if level == FAIL] or nms_problem()


def nms_problem() -> list[str]:
    """Run an operator that torchvision compiles against torch."""
    import torch
    from torchvision.ops import nms

    try:
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # a pair that does not match may raise anything
        return [f"torchvision's nms fails ({first_line(error)}); install its pair of torch"]
    return []


def kept(lines: list[str], pair: dict[str, str]) -> list[str]:
    """Return the lines with the pair as it is; torch's own requirements come from it, not from us."""
    pins = [f'{name}=={number}' for name, number in pair.items()]
    if set(pins) <= set(lines):
        return lines
    names = {canonical(requirement) for requirement in metadata.requires('torch') or []}
    return [*pins, *(line for line in lines if canonical(line) not in names | {*pair})]


def main() -> int:
    lines = CONSTRAINTS.read_text().splitlines()
    pair = {name: version(name) for name in ('torch', 'torchvision') if version(name)}
    if not pair:
        print('\n'.join(lines))
        return 0
    if found := problems():
        print('error: the torch of this environment cannot be used:', *found, sep='\n  ', file=sys.stderr)
        print('Mend it, or use a fresh environment, and run this again.', file=sys.stderr)
        return 1
    print('Keeping', *(f'{name} {number}' for name, number in pair.items()), file=sys.stderr)
    print('\n'.join(kept(lines, pair)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
