"""Pretrain configs x seeds, evaluate their features, and compare them in a table.

python tools/ablate.py 'configs/ablations/omega-*.py' configs/ablations/baseline.py --data ROOT
    [--on photos] [--seeds 0 1 2] [--out work_dirs/ablations] [--cfg-options key=value ...]

Executes what is missing, one run at a time and all configs of a seed before the next seed; the work
dir of a run is OUT/<config>/seed<k>. After Ctrl-C, rerun the same command to continue. Writes
OUT/table.md, results.json and table.png after every run. Exit status: 0 complete, 1 runs failed or
missing, 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import signal
from pathlib import Path


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('configs', nargs='+', help='pretraining configs or quoted globs; baseline comes first')
    add(
        '--data',
        default=os.environ.get('MCBEIT_DATA'),
        metavar='ROOT',
        help='folder with train/ (to pretrain on) and val/, a folder per class; or MCBEIT_DATA',
    )
    add('--out', type=Path, default=Path('work_dirs/ablations'), help='default: %(default)s')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    add('--on', choices=('in1k', 'photos'), help='base of configs/ablations: sets MCBEIT_ABLATION')
    add('--finetune', metavar='CONFIG', help='classification config to fine-tune each result with')
    add('--finetune-options', nargs='+', metavar='KEY=VALUE', default=[], help='its overrides')
    add('--max-train', type=int, help='evaluate features on this many training images')
    add('--bf16', action='store_true', help='extract features under bfloat16 autocast')
    add('--precision', choices=('fp32', 'fp16', 'bf16'), help="of training; default: the config's")
    add('--gpus', type=int, help='train on this many through tools/dist_train.sh')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    add('--check', action='store_true', help='only list what is missing')
    add('--table-only', action='store_true', help='only tabulate the results so far')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.ablation.run import ablate
    from mcbeit_mm.config.launch import one_line_errors

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the current step, as Ctrl-C
    with one_line_errors(ValueError, FileNotFoundError):
        raise SystemExit(ablate(**vars(args)))


if __name__ == '__main__':
    main()
