"""Write the report of a pretraining run and of transfers, in one HTML file.

python tools/report.py WORK_DIR [--features JSON] [--tokenizer-dir DIR] [--data ROOT] [--out HTML]
    [--transfer WORK_DIR [FROM_SCRATCH_DIR]] ...
python tools/report.py --transfer WORK_DIR [FROM_SCRATCH_DIR] --out HTML
python tools/report.py WORK_DIR --method-figure PNG
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('work_dir', type=Path, nargs='?', help='work dir of a pretraining run of tools/train.py')
    add('--checkpoint', type=Path, help='default: the newest of WORK_DIR')
    add('--features', type=Path, help='JSON written by tools/evaluate_features.py --out')
    add('--tokenizer-dir', type=Path, help="work dir of the tokenizer's training, for its curves")
    add(
        '--data',
        type=Path,
        help="folder of images, or one with val/; default: the config's, val/ beside train/ if any",
    )
    add(
        '--transfer',
        type=Path,
        nargs='+',
        action='append',
        metavar='DIR',
        default=[],
        dest='transfers',
        help='work dirs of one transfer, from pretrained weights and from scratch; once per task',
    )
    add('--out', type=Path, help='default: WORK_DIR/report.html')
    add('--method-figure', type=Path, metavar='PNG', help='write only a picture of the method')
    add(
        '--num-images',
        type=int,
        default=256,
        help='images to measure the tokenizer on (%(default)s)',
    )
    add('--device', help="default: 'cuda' if available, else 'cpu'")
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    args = parser.parse_args()
    if args.num_images < 1:
        parser.error('--num-images must be 1 or more')
    if not args.work_dir and not (args.transfers and args.out and not args.method_figure):
        parser.error('pass the WORK_DIR of a pretraining run, or --transfer and --out')
    return args


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # after parsing: --help answers at once

    with launch.one_line_errors(ValueError, FileNotFoundError, ImportError):
        from mcbeit_mm.visualization import report

        options = vars(args)
        if figure := options.pop('method_figure'):
            shared = {key: options[key] for key in ('checkpoint', 'data', 'device', 'cfg_options')}
            out = report.write_method_figure(args.work_dir, figure, **shared)
        else:
            out = report.write_report(**options)
    print(f'{out} ({out.stat().st_size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
