"""Train any config of this repository: pretraining, tokenizer, transfer.

python tools/train.py CONFIG [--work-dir DIR] [--resume] [--check] [--cfg-options key=value ...]
Exit status: 0 done, 1 crashed, 2 a mistake in the setup, 75 interrupted and saved.
"""

import argparse
import os


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config', help='config file')
    add('--work-dir', help='logs and checkpoints; default work_dirs/<config name>')
    add('--resume', nargs='?', const='auto', help='checkpoint; default the newest of the work dir')
    add('--allow-changes', action='store_true', help='resume with other settings or GPU count')
    add('--check', action='store_true', help='check the config and try one step on random images')
    add('--precision', choices=('fp32', 'fp16', 'bf16'), help="default: the config's own")
    add('--amp', dest='precision', action='store_const', const='fp16', help='--precision fp16')
    add('--auto-scale-lr', action='store_true', help='scale the learning rate to the actual batch')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    add('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    add('--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    # Heavy imports come after parsing, so that --help answers at once.
    from mcbeit_mm.config.launch import one_line_errors
    from mcbeit_mm.engine.run import train
    from mcbeit_mm.errors import SetupError

    with one_line_errors(SetupError):
        train(**args)


if __name__ == '__main__':
    main()
