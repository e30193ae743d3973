"""Cache what the tokenizer says of a fixed set of crops per image, for training without it.

python tools/cache_targets.py CONFIG OUT --k 256 --crops 2
python tools/cache_targets.py CONFIG --try 16 64 256        # sizes and exactness, writes nothing
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

GIB = 2**30


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='a pretraining config')
    parser.add_argument('out', type=Path, nargs='?', help='missing, empty or unfinished folder')
    parser.add_argument('--k', type=int, help='codes kept per token; default all of them')
    parser.add_argument('--crops', type=int, default=1, help='per image; default 1')
    parser.add_argument('--dtype', choices=('float16', 'float32'), default='float16')
    parser.add_argument('--seed', type=int, default=0, help='of the crops; default 0')
    parser.add_argument('--batch-size', type=int, default=16, help='images at once; default 16')
    parser.add_argument('--workers', type=int, default=2, help='that read images; default 2')
    parser.add_argument('--device', help='default: cuda if there is one')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--try', dest='tried', type=int, nargs='+', metavar='K')
    parser.add_argument('--images', type=int, default=64, help='measured by --try; default 64')
    args = parser.parse_args()
    if (args.out is None) == (args.tried is None):
        parser.error('give OUT, or --try K ...')
    if args.batch_size < 1 or args.images < 1:
        parser.error('--batch-size and --images must be 1 or more')
    return args


def main() -> None:
    args = parse_args()
    import torch
    from mmengine.registry import init_default_scope

    import mcbeit_mm  # noqa: F401  registers everything
    from mcbeit_mm.cached_targets.building import CacheBuilder
    from mcbeit_mm.config import launch

    with launch.one_line_errors(ValueError, OSError):
        cfg = launch.load_config(args.config, args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
        k = max(args.tried) if args.tried else args.k
        builder = CacheBuilder(cfg, k, args.crops, args.dtype, args.seed, device)
        if args.tried:
            print(table(builder, args.tried, args.images))
            return
        plan = builder.plan
        size = f'{plan.num_bytes / GIB:.2f} GiB'
        print(f'{plan.num_images:,} images x {plan.num_crops} crops: {size}')
        args.out.mkdir(parents=True, exist_ok=True)
        written = sum(file.stat().st_size for file in args.out.glob('*.bin'))
        if plan.num_bytes - written > shutil.disk_usage(args.out).free:
            raise OSError(28, f'not enough room for {size}', str(args.out))
        unreadable = builder.build(args.out, args.batch_size, args.workers)
    print(f'{unreadable} images could not be read; done: MCBEIT_CACHE={args.out.resolve()}')


def table(builder, tried: list[int], images: int) -> str:
    """A line per k: its size, and how exact the targets are."""
    plan = builder.plan
    formats = [plan.record._replace(k=k).check() for k in tried]
    rows = [('k', 'KiB a crop', 'GiB in all', 'mass kept', 'KL (nats)', 'other best code')]
    for record, found in zip(formats, builder.measure(formats, images), strict=True):
        size = replace(plan, record=record).num_bytes
        rows.append(
            (
                f'{record.k}',
                f'{record.num_bytes / 1024:.1f}',
                f'{size / GIB:.3g}',
                f'{found.mass:.4f}',
                f'{found.kl:.2e}',
                f'{found.changed:.3%}',
            )
        )
    lines = [''.join(f'{cell:<16}' for cell in row).rstrip() for row in rows]
    return '\n'.join(
        [f'{plan.num_images:,} images x {plan.num_crops}, tau {plan.record.tau:g}', *lines]
    )


if __name__ == '__main__':
    sys.exit(main())
