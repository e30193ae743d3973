"""Write the embedded data set: digits on photographs, labelled for three tasks at once.

python tools/make_demo_data.py --out data/demo [--train 2000] [--val 400] [--size 128] [--seed 0]

Needs scikit-learn and scikit-image, downloads nothing. A finished set with the same arguments is
kept as it is.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('--out', default='data/demo', help='folder of the set (default: %(default)s)')
    add('--train', type=int, default=2000, help='training images (default: %(default)s)')
    add('--val', type=int, default=400, help='validation images (default: %(default)s)')
    add('--size', type=int, default=128, help='side in pixels (default: %(default)s)')
    add('--seed', type=int, default=0, help='another seed, another set (default: %(default)s)')
    return parser.parse_args()


def progress(total: int) -> Callable[[Iterable], Iterator]:
    """Return a wrapper of iterables that prints a line each second and counts on over all."""
    start = shown = time.monotonic()
    done = 0

    def watch(images: Iterable) -> Iterator:
        nonlocal done, shown
        for image in images:
            yield image
            done += 1
            now = time.monotonic()
            if now - shown >= 1 or done == total:
                shown, left = now, (now - start) * (total - done) / done
                print(f'{done}/{total} images, {left:.0f} s left', flush=True)

    return watch


def main() -> None:
    args = parse_args()
    from mcbeit_mm.datasets.demo.layouts import (
        make_demo_data,  # after parsing: --help answers at once
    )

    info = make_demo_data(**vars(args), watch=progress(args.train + args.val))
    print(f'{args.out}: {args.train} + {args.val} images, {sum(info["digits"].values())} digits')


if __name__ == '__main__':
    main()
