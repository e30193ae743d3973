"""Print constraints.txt, with the torch and torchvision of this environment pinned if it has them.

So pip cannot replace a CUDA build that the user chose. Exit status 1, with a remedy, if the two
are too old or do not work together.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from doctor import FAIL, check_distribution, check_torchvision, error_of, version

CONSTRAINTS = Path(__file__).parents[1] / 'constraints.txt'


def canonical(requirement: str) -> str:
    """Return the package of a requirement in the spelling of constraints.txt."""
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]*', requirement)[0]).lower()


def problems() -> list[str]:
    """Return what is wrong with the installed torch and torchvision, a line each."""
    lines = [*check_distribution('torch'), *check_torchvision()]
    found = [f'{name}: {text}' for level, name, text in lines if level == FAIL]
    if not found and (error := error_of(run_nms)):
        found.append(f'torchvision: nms fails ({error}); install both from one index')
    return found


def run_nms() -> None:
    """Run an operator that torchvision compiles against torch."""
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def keep(pair: dict[str, str], lines: list[str]) -> list[str]:
    """Return the lines with the pair pinned to its versions and torch's requirements left free."""
    pins = [f'{name}=={number}' for name, number in pair.items()]
    if set(pins) <= set(lines):
        return lines
    # Another torch may need another version: torch 2.6 needs exactly sympy 1.13.1.
    freed = {canonical(requirement) for requirement in metadata.requires('torch') or []}
    return pins + [line for line in lines if canonical(line) not in freed | pair.keys()]


def main() -> int:
    lines = CONSTRAINTS.read_text().splitlines()
    pair = {name: found for name in ('torch', 'torchvision') if (found := version(name))}
    if pair and (found := problems()):
        head = f'error: the torch of {sys.prefix} cannot be used:'
        tail = 'Fix that or use a fresh environment, then run this again.'
        print(head, *found, tail, sep='\n  ', file=sys.stderr)
        return 1
    if pair:
        print(f'Keeping torch {pair["torch"]}, torchvision {pair["torchvision"]}', file=sys.stderr)
        lines = keep(pair, lines)
    print('\n'.join(lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
