"""Shared by the command-line tools: reading configs, one-line errors, devices."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.utils import import_modules_from_strings

from ..fileio.atomic_files import FULL
from .checks.keys import check_option


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Print errors that the user can correct as one line and exit with status 2.

    These are the given kinds, a full disk, and a component that its registry cannot build from the
    config. MCBEIT_TRACEBACK=1 shows the traceback instead.
    """
    try:
        yield
    except Exception as error:
        full_disk = isinstance(error, OSError) and error.errno in FULL
        if not (isinstance(error, kinds) or full_disk or _is_config_error(error)):
            raise
        if os.environ.get('MCBEIT_TRACEBACK') == '1':
            raise
        text = ' '.join(str(error.args[0] if len(error.args) == 1 else error).split())
        # An error of a data loader's worker contains the worker's traceback.
        text = text.rpartition(f'{type(error).__name__}: ')[2]
        if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
            print(f'error: {text}', file=sys.stderr)
        raise SystemExit(2) from None


def _is_config_error(error: Exception) -> bool:
    """Whether MMEngine failed to build a node of the config: unknown type or wrong arguments."""
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, KeyError):
        return frames[-1] == 'build_from_cfg'
    built = {'build_from_cfg', 'build_dataloader'} & set(frames)
    return isinstance(error, TypeError) and bool(built) and '__init__() ' in str(error)


@contextmanager
def warnings_only() -> Iterator[None]:
    """Hide MMEngine's log below warnings."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def load_config(path: str, options: Sequence[str] = ()) -> Config:
    """Read a config and apply `--cfg-options`, words of the form key=value.

    Raises:
        FileNotFoundError: no such file; names one with a similar name.
        ValueError: a mistake in the file, a module of custom_imports that cannot be imported, or a
            misspelled option.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        near = difflib.get_close_matches(
            Path(path).name, os.listdir(folder) if folder.is_dir() else []
        )
        hint = f'; did you mean {folder / near[0]}?' if near else ''
        raise FileNotFoundError(f'no config file {path}{hint}')
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except (TypeError, KeyError, AttributeError, SyntaxError, ImportError) as error:
        raise ValueError(f'{path}: {type(error).__name__}: {error}') from error
    _import_custom_modules(path, cfg.get('custom_imports'))
    values = parse_options(options)
    for key in values:
        check_option(cfg, key)
    cfg.merge_from_dict(values)
    return cfg


def _import_custom_modules(path: str, custom_imports: dict | None) -> None:
    try:
        import_modules_from_strings(**custom_imports or dict(imports=None))
    except (TypeError, ImportError) as error:
        reason = f' ({error.__context__})' if error.__context__ else ''  # the module's own error
        raise ValueError(
            f'{path}: custom_imports: {error}{reason}: install the module or correct its name '
            'there; CHANGELOG.md lists the modules of mcbeit_mm that moved'
        ) from error


def parse_options(options: Sequence[str]) -> dict:
    """Parse `key=value` words like OpenMMLab's --cfg-options."""
    wrong = [option for option in options if '=' not in option]
    if wrong:
        raise ValueError(f'--cfg-options takes key=value, got {" ".join(wrong)}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    return parser.parse_args(['--options', *options]).options or {}


def set_precision(cfg: Config, precision: str) -> None:
    """Choose 'fp32', 'fp16' or 'bf16' for the forward pass of any config."""
    kinds = dict(fp32='OptimWrapper', fp16='AmpOptimWrapper', bf16='Bf16OptimWrapper')
    cfg.optim_wrapper.type = kinds[precision]
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)


def scale_learning_rate(cfg: Config) -> None:
    """Let MMEngine scale the learning rate by actual batch / the config's base_batch_size.

    MMEngine's actual batch excludes accumulation, so the base is divided by it here.
    """
    if not cfg.get('auto_scale_lr'):
        raise ValueError('the config has no auto_scale_lr.base_batch_size to scale from')
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    cfg.auto_scale_lr.enable = True
    cfg.auto_scale_lr.base_batch_size /= accumulated


def require_all_weights(cfg: Config) -> None:
    """Make a test fail if the checkpoint lacks a head, rather than score random weights."""
    for hook in cfg.get('custom_hooks') or []:
        if hook.type == 'FitWeightsHook':
            hook.complete = True


def draw_predictions(cfg: Config, folder: str) -> None:
    """Save every test image with its prediction in a folder, with the task's own visualizer."""
    if cfg.get('launcher', 'none') != 'none':
        raise ValueError('--show-dir needs a single process: use tools/test.py without a launcher')
    folder = str(Path(folder).resolve())
    tasks = dict(
        mmpretrain=(
            'UniversalVisualizer',
            dict(type='ClassPicturesHook', enable=True, interval=1, out_dir=folder),
        ),
        mmseg=('SegLocalVisualizer', dict(type='SegVisualizationHook', draw=True)),
        mmdet=(
            'DetLocalVisualizer',
            dict(type='DetVisualizationHook', draw=True, test_out_dir=folder),
        ),
    )
    if cfg.default_scope not in tasks:
        raise ValueError(f'--show-dir supports {", ".join(tasks)}, not {cfg.default_scope!r}')
    visualizer, cfg.default_hooks.visualization = tasks[cfg.default_scope]
    backends = [dict(type='LocalVisBackend')]
    cfg.visualizer = dict(type=visualizer, vis_backends=backends, save_dir=folder)


def adapt_to_device(cfg: Config) -> None:
    """Make a config for GPUs run on a machine without one: gloo, no pinned memory, plain BN."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name) or {}
        if loader.get('num_workers') == 0:
            loader.persistent_workers = False  # torch refuses them without workers
        if not torch.cuda.is_available() and loader.get('pin_memory'):
            loader.pin_memory = False
    if torch.cuda.is_available() or cfg.get('launcher', 'none') == 'none':
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(f'launcher {cfg.launcher!r} needs GPUs; on CPUs use tools/dist_train.sh')
    _use_plain_batch_norm(cfg.model)
    # MMEngine's own setup calls torch.cuda.set_device and gives DDP a device id: both need CUDA.
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )


def _use_plain_batch_norm(node: object) -> None:
    """Replace SyncBN, which needs CUDA; MMEngine replaces it in a single process only."""
    if isinstance(node, dict):
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            _use_plain_batch_norm(child)
