"""Cache the tokenizer's best codes for fixed crops of each image, to train without it.

python tools/cache_targets.py CONFIG OUT --k 256 --crops 2
python tools/cache_targets.py CONFIG --try 16 64 256        # size and exactness, writes nothing
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='pretraining config')
    parser.add_argument('out', type=Path, nargs='?', help='new or empty folder')
    parser.add_argument('--k', type=int, help='codes kept per token; default all')
    parser.add_argument('--crops', type=int, default=1, help='per image; default 1')
    parser.add_argument('--seed', type=int, default=0, help='of the crops; default 0')
    parser.add_argument('--batch-size', type=int, default=16, help='images per batch; default 16')
    parser.add_argument('--workers', type=int, default=2, help='reader processes; default 2')
    parser.add_argument('--device', help='default: cuda if available')
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
        builder = CacheBuilder(cfg, k, args.crops, args.seed, device)
        if args.tried:
            print(builder.compare(args.tried, args.images))
            return
        unreadable = builder.build(args.out, args.batch_size, args.workers)
    print(f'{unreadable} unreadable images. Train with MCBEIT_CACHE={args.out.resolve()}')


if __name__ == '__main__':
    main()
