"""Cache the tokenizer's best codes for fixed crops of each image, to train without it.

python tools/cache_targets.py CONFIG OUT --k 256 --crops 2
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='pretraining config')
    parser.add_argument('out', type=Path, help='new or empty folder')
    parser.add_argument('--k', type=int, help='codes kept per token; default all')
    parser.add_argument('--crops', type=int, default=1, help='crops per image; default 1')
    parser.add_argument('--seed', type=int, default=0, help='seed of the crops; default 0')
    parser.add_argument('--batch-size', type=int, default=16, help='images per batch; default 16')
    parser.add_argument('--workers', type=int, default=2, help='reader processes; default 2')
    parser.add_argument('--device', help='default: cuda if available')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config values'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import torch
    from mmengine.registry import init_default_scope

    import mcbeit_mm  # noqa: F401  registers everything
    from mcbeit_mm.cached_targets.building import CacheBuilder
    from mcbeit_mm.config import launch

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with launch.one_line_errors(ValueError, OSError):
        cfg = launch.load_config(args.config, args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        builder = CacheBuilder(cfg, args.k, args.crops, args.seed, device)
        unreadable = builder.build(args.out, args.batch_size, args.workers)
    print(f'\n{unreadable} unreadable images. Train with MCBEIT_CACHE={args.out.resolve()}')


if __name__ == '__main__':
    main()
