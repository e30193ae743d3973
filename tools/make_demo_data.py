"""Write the embedded data set: digits on photographs, labeled for three tasks at once.

python tools/make_demo_data.py --out data/demo [--train 2000] [--val 400] [--size 128] [--seed 0]

Needs scikit-learn and scikit-image, downloads nothing. A finished set with the same arguments is
kept.
"""

import argparse


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('--out', default='data/demo', help='folder of the set (default: %(default)s)')
    add('--train', type=int, default=2000, help='training images (default: %(default)s)')
    add('--val', type=int, default=400, help='validation images (default: %(default)s)')
    add('--size', type=int, default=128, help='side in pixels (default: %(default)s)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    args = parser.parse_args()
    from mcbeit_mm.config import launch  # heavy imports after parsing: --help answers at once
    from mcbeit_mm.datasets.demo.layouts import make_demo_data

    with launch.one_line_errors(ValueError, OSError, ImportError):
        info = make_demo_data(**vars(args), progress=True)
    print(f'{args.out}: {args.train} + {args.val} images, {sum(info["digits"].values())} digits')


if __name__ == '__main__':
    main()
