"""Train any config of this repository: pretraining, tokenizer, transfer.

python tools/train.py CONFIG [--work-dir DIR] [--resume] [--check] [--cfg-options key=value ...]
Exit status: 0 done, 1 crashed, 2 a mistake in the set-up, 75 interrupted and saved.
"""

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='logs and checkpoints; default work_dirs/<config name>')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint, or from the newest in the work dir',
    )
    parser.add_argument(
        '--allow-changes',
        action='store_true',
        help='resume with other settings or another number of GPUs; says what that changes',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='only check the config, do one step on random images and estimate the memory',
    )
    parser.add_argument(
        '--precision', choices=('fp32', 'fp16', 'bf16'), help="default: the config's own"
    )
    parser.add_argument('--amp', action='store_true', help='short for --precision fp16')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the actual batch'
    )
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
    # Heavy imports come after parsing, so that --help and typing errors answer at once.
    from mmengine.runner import Runner
    from torch.distributed.elastic.multiprocessing.errors import record

    from mcbeit_mm.config import launch, preflight
    from mcbeit_mm.config.dry_run import run_check
    from mcbeit_mm.engine import resume
    from mcbeit_mm.errors import SetupError

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with launch.one_line_errors(ValueError, FileNotFoundError):
        cfg = launch.load_config(args.config, args.cfg_options)
        cfg.launcher = args.launcher
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
        if args.amp or args.precision:
            launch.set_precision(cfg, args.precision or 'fp16')
        if args.auto_scale_lr:
            launch.scale_learning_rate(cfg)
        found = resume.checkpoint_to_resume(cfg.work_dir, args.resume) if args.resume else None
        if found:  # else the run starts as the config says
            cfg.resume, cfg.load_from = True, found
        preflight.check_before_run(cfg, checking=args.check)
        if args.check:
            run_check(cfg)
            return
        launch.adapt_to_device(cfg)
        if found:
            processes = resume.world_size_of(args.launcher)
            resume.check_resume(cfg, found, processes, args.allow_changes)
        runner = Runner.from_cfg(cfg)
        if found:
            resume.skip_initial_weights(runner)
    with launch.one_line_errors(SetupError):
        record(runner.train)()  # torchrun then shows why a process died


if __name__ == '__main__':
    main()
