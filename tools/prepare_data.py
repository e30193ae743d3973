"""Check a data set before a long run: its layout, and every image of it.

python tools/prepare_data.py imagenet|ade20k|coco|folder ROOT [--fast] [--out FILE]

Exit status 0: all is well; 1: something is wrong; 2: wrong usage. The layouts are described in
docs/transfer.md.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument('root', metavar='ROOT', help='folder of the data set')
    shared.add_argument(
        '--fast', action='store_true', help='layout and file headers only; default: decode all'
    )
    shared.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, help='processes (default: %(default)s)'
    )
    shared.add_argument('--out', type=Path, metavar='FILE', help='write every problem to this file')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    layouts = parser.add_subparsers(dest='layout', required=True)
    imagenet = layouts.add_parser(
        'imagenet', parents=[shared], help='train/ and val/ with a folder per class, or lists'
    )
    imagenet.add_argument('--classes', type=int, metavar='N', help='expected number of classes')
    imagenet.add_argument('--train-list', metavar='FILE', help='lines "path below train/ label"')
    imagenet.add_argument('--val-list', metavar='FILE', help='lines "path below val/ label"')
    imagenet.add_argument(
        '--label-order', type=Path, metavar='FILE', help='class names by label, for flat folders'
    )
    imagenet.add_argument(
        '--write-lists',
        type=Path,
        metavar='DIR',
        help='write train.txt, val.txt, classes.txt: readable images, classes in sorted order',
    )
    ade20k = layouts.add_parser(
        'ade20k', parents=[shared], help='images/ and annotations/ with training/, validation/'
    )
    ade20k.add_argument(
        '--classes', type=int, metavar='N', help='default: lines of ROOT/classes.txt, else 150'
    )
    ade20k.add_argument(
        '--zero-is-class', action='store_true', help='ids 0..N-1 instead of 1..N with 0 ignored'
    )
    coco = layouts.add_parser(
        'coco', parents=[shared], help='train2017/, val2017/, annotations/instances_*.json'
    )
    coco.add_argument(
        '--split',
        nargs=2,
        action='append',
        metavar=('JSON', 'IMAGES'),
        help='annotation file and image folder below ROOT; repeat it; default: both of COCO',
    )
    layouts.add_parser('folder', parents=[shared], help='unlabelled photos at any depth')
    return parser.parse_args()


def progress(infos: Iterable) -> Iterator:
    """Print a count to stderr every ten seconds."""
    start = shown = time.monotonic()
    for done, info in enumerate(infos, start=1):
        yield info
        now = time.monotonic()
        if now - shown >= 10:
            shown = now
            print(f'{done} images, {done / (now - start):.0f} per second', file=sys.stderr)


def check(args: argparse.Namespace):
    """Run the check of the layout with its options."""
    from mcbeit_mm.datasets.checks.ade20k import check_ade20k
    from mcbeit_mm.datasets.checks.coco import COCO, check_coco
    from mcbeit_mm.datasets.checks.common import check_folder
    from mcbeit_mm.datasets.checks.imagenet import check_imagenet

    if not Path(args.root).is_dir():
        raise FileNotFoundError(f'no folder {args.root}')
    reading = dict(decode=not args.fast, workers=args.workers, watch=progress)
    if args.layout == 'imagenet':
        lists = {'train': args.train_list, 'val': args.val_list}
        order = args.label_order.read_text().split() if args.label_order else None
        return check_imagenet(
            args.root, args.classes, lists, order, write_to=args.write_lists, **reading
        )
    if args.layout == 'ade20k':
        return check_ade20k(args.root, args.classes, args.zero_is_class, **reading)
    if args.layout == 'coco':
        return check_coco(args.root, tuple(args.split or COCO), **reading)
    return check_folder(args.root, **reading)


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import (
        launch,  # heavy imports come after parsing, so that --help answers at once
    )

    with launch.one_line_errors(ValueError, FileNotFoundError):
        report = check(args)
        if args.out:
            args.out.write_text(report.text(examples=None) + '\n')
    print(report.text())
    raise SystemExit(1 if report.errors else 0)


if __name__ == '__main__':
    main()
