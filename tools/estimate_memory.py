"""Estimate the GPU memory that a config needs for training; runs without a GPU.

python tools/estimate_memory.py CONFIG [--batch N] [--size H W]
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    parser.add_argument('--batch', type=int, help="images per GPU; default the config's")
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help="input; default the backbone's"
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    from mcbeit_mm.config import launch
    from mcbeit_mm.config.memory import GIB, estimate_memory

    print(f'{"GiB":>7}  weights  gradients  AdamW  fixed  per image  batch  config')
    for path in args.configs:
        with launch.one_line_errors(ValueError, FileNotFoundError):
            cfg = launch.load_config(path, args.cfg_options)
            init_default_scope(cfg.default_scope)
            model = revert_sync_batchnorm(MODELS.build(cfg.model))  # CPUs have no SyncBN
            side = cfg.model.backbone.get('img_size', 224)
            size = tuple(args.size or ([side, side] if isinstance(side, int) else side))
            batch = args.batch or cfg.train_dataloader.batch_size
            half = cfg.optim_wrapper.type != 'OptimWrapper'
            memory = estimate_memory(model, size, half)
        parts = (memory.weights, memory.gradients, memory.moments, memory.fixed, memory.per_image)
        total = memory.total(batch) / GIB
        columns = '  '.join(f'{part / GIB:7.3f}' for part in parts)
        print(f'{total:7.1f}  {columns}  {batch:5d}  {path}', flush=True)


if __name__ == '__main__':
    main()
