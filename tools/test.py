"""Test a checkpoint with the metrics of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--work-dir DIR] [--cfg-options K=V ...]
"""

import argparse
import os


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='weights to test, or a work dir with checkpoints')
    add('--work-dir', help='logs; default work_dirs/<config name>')
    add('--show-dir', help='draw the predictions on the test images in this folder')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    add('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    add('--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    # Heavy imports come after parsing, so that --help answers at once.
    from mcbeit_mm.config.launch import one_line_errors
    from mcbeit_mm.engine.run import test
    from mcbeit_mm.errors import SetupError

    with one_line_errors(SetupError):
        test(**args)


if __name__ == '__main__':
    main()
