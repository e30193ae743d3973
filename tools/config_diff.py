"""Show in which settings two configs differ once inheritance is resolved, and who set them.

python tools/config_diff.py A B [--cfg-options key=value ...]

One line per leaf: key: value in A -> value in B  [file that set the first -> second]. A file is
the most derived one of the config's _base_ files that changes the value. Exit status: 0 equal,
1 different, 2 error.
"""

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('a', metavar='A', help='config file')
    parser.add_argument('b', metavar='B', help='config file to compare with it')
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override values of B'
    )
    parser.add_argument(
        '--all', action='store_true', help='also variables that only config files themselves read'
    )
    return parser.parse_args()


def shown(path: Path | None) -> str:
    """A path relative to the current folder where it lies below it."""
    if path is None:
        return '-'
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


def compare(args: argparse.Namespace) -> int:
    from mmengine.logging import MMLogger

    from mcbeit_mm.config import launch
    from mcbeit_mm.config.diff import ConfigFile, differences, lookup, settings

    MMLogger.get_current_instance().setLevel('WARNING')  # it names variables once per file
    cfgs = [launch.load_config(args.a), launch.load_config(args.b, args.cfg_options)]
    files = [ConfigFile(args.a), ConfigFile(args.b)]

    def source(side: int, key: tuple[str, ...]) -> str:
        overridden = differences(
            lookup(files[side].values, key), lookup(dict(cfgs[side].items()), key)
        )
        return '--cfg-options' if overridden else shown(files[side].origin(key))

    changes = differences(*(dict(cfg.items()) if args.all else settings(cfg) for cfg in cfgs))
    for change in changes:
        print(f'{change}  [{source(0, change.key)} -> {source(1, change.key)}]')
    return int(bool(changes))


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import (
        launch,  # heavy imports come after parsing, so that --help answers at once
    )

    with launch.one_line_errors(ValueError, FileNotFoundError):
        raise SystemExit(compare(args))


if __name__ == '__main__':
    main()
