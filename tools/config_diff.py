"""Show the settings in which two configs differ once inheritance is resolved.

python tools/config_diff.py A B [--cfg-options key=value ...]

One line per leaf: key: value in A -> value in B. Exit status: 0 equal, 1 different, 2 error.
"""

import argparse


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('a', metavar='A', help='config file')
    add('b', metavar='B', help='config file to compare with it')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override values of B')
    add('--all', action='store_true', help='include variables that only config files read')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config.diff import compare_files
    from mcbeit_mm.config.launch import one_line_errors

    with one_line_errors(ValueError, FileNotFoundError):
        changes = compare_files(args.a, args.b, args.cfg_options, args.all)
    print(*changes, sep='\n', end='\n' * bool(changes))
    raise SystemExit(bool(changes))


if __name__ == '__main__':
    main()
