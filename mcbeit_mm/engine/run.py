"""Training and testing a config from start to end: what tools/train.py and tools/test.py call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from torch.distributed.elastic.multiprocessing.errors import record

from ..config.checks.batch import world_size
from ..config.checks.disk import check_disk
from ..config.dry_run import run_check
from ..config.launch import (
    adapt_to_device,
    draw_predictions,
    load_config,
    require_all_weights,
    scale_learning_rate,
    set_precision,
)
from ..config.preflight import check_before_run
from ..errors import SetupError
from ..layers.blocks import allow_recompiles
from .resume import check_resume, checkpoint_to_resume, find_checkpoint, skip_initial_weights


def train(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    allow_changes: bool = False,
    check: bool = False,
    precision: str | None = None,
    auto_scale_lr: bool = False,
    cfg_options: Sequence[str] = (),
    launcher: str = 'none',
) -> None:
    """Train a config file.

    Args:
        work_dir: logs and checkpoints; default the config's, or work_dirs/<config name>.
        resume: a checkpoint or work dir, or 'auto' for the newest checkpoint of the work dir.
        allow_changes: resume with other settings or another number of GPUs.
        check: only check the config and try one step on random images.
        precision: 'fp32', 'fp16' or 'bf16'; default the config's own.
        auto_scale_lr: scale the learning rate to the actual batch.
        cfg_options: overrides, 'key=value'.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        SetupError: a user's mistake, found before training starts.
    """
    with _setup_errors():
        cfg = _load(config, work_dir, cfg_options, launcher)
        if precision:
            set_precision(cfg, precision)
        if auto_scale_lr:
            scale_learning_rate(cfg)
        found = checkpoint_to_resume(cfg.work_dir, resume) if resume else None
        if found:
            cfg.resume, cfg.load_from = True, found
        check_before_run(cfg, checking=check)
        if check:
            return run_check(cfg)
        adapt_to_device(cfg)
        allow_recompiles(cfg.model)
        if found:
            check_resume(cfg, found, world_size(launcher), allow_changes)
        runner = Runner.from_cfg(cfg)
        check_disk(cfg, runner.model)
        if found:
            skip_initial_weights(runner)
    record(runner.train)()  # lets torchrun report why a process died


def test(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    show_dir: str | None = None,
    cfg_options: Sequence[str] = (),
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint, or the newest of a work dir, with the metrics of a config file.

    Args:
        work_dir: logs; default as for `train`.
        show_dir: folder for pictures of the predictions.

    Raises:
        SetupError: a user's mistake, found before the first batch.
    """
    with _setup_errors():
        cfg = _load(config, work_dir, cfg_options, launcher)
        if not cfg.get('test_dataloader'):
            raise SetupError(f'{config} has no test set; see tools/evaluate_features.py')
        cfg.load_from = str(find_checkpoint(checkpoint))
        require_all_weights(cfg)
        if show_dir:
            draw_predictions(cfg, show_dir)
        check_before_run(cfg, testing=True)
        adapt_to_device(cfg)
        runner = Runner.from_cfg(cfg)
    return runner.test()


def _load(config: str, work_dir: str | None, options: Sequence[str], launcher: str) -> Config:
    cfg = load_config(config, options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'work_dirs/{Path(config).stem}'
    return cfg


@contextmanager
def _setup_errors() -> Iterator[None]:
    """Raise mistakes in the setup as SetupError, to distinguish them from failures of the run."""
    try:
        yield
    except SetupError:
        raise
    except (ValueError, FileNotFoundError) as error:
        text = error.args[0] if len(error.args) == 1 else error
        raise SetupError(str(text)) from error
