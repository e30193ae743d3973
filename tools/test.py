"""Test a checkpoint with the metrics of its config.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--work-dir DIR] [--cfg-options K=V ...]
"""

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weights to test')
    parser.add_argument('--work-dir', help='logs; default work_dirs/<config name>')
    parser.add_argument('--show-dir', help='draw the predictions on the test images, into here')
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values'
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='job launcher',
    )
    parser.add_argument('--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmengine.runner import Runner

    from mcbeit_mm.config import launch, preflight
    from mcbeit_mm.engine import resume
    from mcbeit_mm.errors import SetupError

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with launch.one_line_errors(ValueError, FileNotFoundError):
        cfg = launch.load_config(args.config, args.cfg_options)
        if not cfg.get('test_dataloader'):
            raise ValueError(f'{args.config} has no test set; see tools/evaluate_features.py')
        cfg.launcher = args.launcher
        cfg.load_from = str(resume.find_checkpoint(args.checkpoint))
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
        launch.require_all_weights(cfg)
        if args.show_dir:
            launch.draw_predictions(cfg, args.show_dir)
        preflight.check_before_run(cfg, testing=True)
        launch.adapt_to_device(cfg)
        runner = Runner.from_cfg(cfg)
    with launch.one_line_errors(SetupError):
        runner.test()


if __name__ == '__main__':
    main()
