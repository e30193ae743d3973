"""Check a data set before a long run: its layout, and every image in it.

python tools/prepare_data.py imagenet|ade20k|coco|folder ROOT [--fast] [--out FILE]

Exit status 0: no problems; 1: problems found; 2: wrong usage. docs/transfer.md describes the
layouts.
"""

import argparse
import os


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add('root', metavar='ROOT', help='folder of the data set')
    add('--fast', action='store_true', help='layout and file headers only; default: decode all')
    add('--workers', type=int, default=os.cpu_count() or 1, help='processes (default: %(default)s)')
    add('--out', metavar='FILE', help='list every problem in this file')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    layouts = parser.add_subparsers(dest='layout', required=True)
    add = layouts.add_parser(
        'imagenet', parents=[shared], help='train/ and val/ with a folder per class, or lists'
    ).add_argument
    add('--classes', type=int, metavar='N', help='expected number of classes')
    add('--train-list', metavar='FILE', help='lines "path below train/ label"')
    add('--val-list', metavar='FILE', help='lines "path below val/ label"')
    add('--label-order', metavar='FILE', help='class names by label, for flat folders')
    add(
        '--write-lists',
        metavar='DIR',
        help='write train.txt, val.txt, classes.txt: readable images, classes in sorted order',
    )
    add = layouts.add_parser(
        'ade20k', parents=[shared], help='images/ and annotations/ with training/, validation/'
    ).add_argument
    add('--classes', type=int, metavar='N', help='default: lines of ROOT/classes.txt, else 150')
    add('--zero-is-class', action='store_true', help='ids 0..N-1 instead of 1..N with 0 ignored')
    add = layouts.add_parser(
        'coco', parents=[shared], help='train2017/, val2017/, annotations/instances_*.json'
    ).add_argument
    add(
        '--split',
        nargs=2,
        action='append',
        metavar=('JSON', 'IMAGES'),
        help='annotation file and image folder below ROOT (repeatable); default: those of COCO',
    )
    layouts.add_parser('folder', parents=[shared], help='unlabeled images at any depth')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # heavy imports after parsing: --help answers at once
    from mcbeit_mm.datasets.checks.dataset import check_dataset

    with launch.one_line_errors(ValueError, FileNotFoundError):
        report = check_dataset(**vars(args), progress=True)
    print(report.text())
    raise SystemExit(1 if report.errors else 0)


if __name__ == '__main__':
    main()
