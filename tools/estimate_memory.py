"""Estimate the GPU memory that a config needs for training; runs without a GPU.

python tools/estimate_memory.py CONFIG [--batch N] [--size H W]
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('configs', nargs='+', metavar='CONFIG', help='config files')
    add('--batch', type=int, help="images per GPU; default the config's")
    add('--size', type=int, nargs=2, metavar=('H', 'W'), help="input; default the backbone's")
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config.launch import one_line_errors
    from mcbeit_mm.config.memory import print_estimates

    with one_line_errors(ValueError, FileNotFoundError):
        print_estimates(args.configs, args.batch, args.size, args.cfg_options)


if __name__ == '__main__':
    main()
