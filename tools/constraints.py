"""Print constraints.txt, pinning the torch and torchvision of this environment if it has them.

This keeps pip from replacing a CUDA build that the user chose. Exit status 1, with a remedy, if the
two are too old or do not work together.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from doctor import FAIL, OK, check_package, check_pair, version

CONSTRAINTS = Path(__file__).parents[1] / 'constraints.txt'


def canonical(requirement: str) -> str:
    """Return the package of a requirement in the spelling of constraints.txt."""
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]*', requirement)[0]).lower()


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
    if pair:
        found = [*check_package('torch'), *check_package('torchvision'), *check_pair()]
        if any(level == FAIL for level, *_ in found):
            problems = [f'{name}: {text}' for level, name, text in found if level != OK]
            head = f'error: the torch of {sys.prefix} cannot be used:'
            tail = 'Fix that or use a fresh environment, then run this again.'
            print(head, *problems, tail, sep='\n  ', file=sys.stderr)
            return 1
        pins = ', '.join(f'{name} {number}' for name, number in pair.items())
        print(f'Keeping {pins}', file=sys.stderr)
        lines = keep(pair, lines)
    print('\n'.join(lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
