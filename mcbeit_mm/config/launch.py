"""What the command-line tools share: reading configs, one-line errors, devices."""

import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config

from ..fileio.atomic_files import FULL
from .options import check_option, parse_options


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Print the given errors, and a full disk, as one line and exit with 2.

    MCBEIT_TRACEBACK=1 shows where.
    """
    try:
        yield
    except (*kinds, OSError) as error:
        if not isinstance(error, kinds) and error.errno not in FULL:
            raise
        if os.environ.get('MCBEIT_TRACEBACK') == '1':
            raise
        text = ' '.join(str(error.args[0] if len(error.args) == 1 else error).split())
        # One that comes from a worker of a data loader brings the worker's traceback along.
        text = text.rpartition(f'{type(error).__name__}: ')[2]
        if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
            print(f'error: {text}', file=sys.stderr)
        raise SystemExit(2) from None


def load_config(path: str, options: Sequence[str] = ()) -> Config:
    """Read a config and apply `--cfg-options`, words of the form key=value.

    FileNotFoundError and ValueError say what is wrong.
    """
    if not Path(path).is_file():
        folder = Path(path).parent
        near = difflib.get_close_matches(
            Path(path).name, os.listdir(folder) if folder.is_dir() else []
        )
        hint = f'; did you mean {folder / near[0]}?' if near else ''
        raise FileNotFoundError(f'no config file {path}{hint}')
    try:
        cfg = Config.fromfile(path)
    except (TypeError, KeyError, AttributeError, SyntaxError) as error:  # a mistake in the file
        raise ValueError(f'{path}: {type(error).__name__}: {error}') from error
    values = parse_options(options)
    for key in values:
        check_option(cfg, key)
    cfg.merge_from_dict(values)
    return cfg


def set_precision(cfg: Config, precision: str) -> None:
    """Choose 'fp32', 'fp16' or 'bf16' for the forward pass of any config."""
    kinds = dict(fp32='OptimWrapper', fp16='AmpOptimWrapper', bf16='Bf16OptimWrapper')
    cfg.optim_wrapper.type = kinds[precision]
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)


def scale_learning_rate(cfg: Config) -> None:
    """Let MMEngine scale the learning rate by actual batch / the config's base_batch_size.

    MMEngine leaves accumulated steps out of the actual batch, so they come off the base here.
    """
    if not cfg.get('auto_scale_lr'):
        raise ValueError('the config has no auto_scale_lr.base_batch_size to scale from')
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    cfg.auto_scale_lr.enable = True
    cfg.auto_scale_lr.base_batch_size /= accumulated


def require_all_weights(cfg: Config) -> None:
    """Let a test fail when the checkpoint lacks a head: random weights have no score."""
    for hook in cfg.get('custom_hooks') or []:
        if hook.type == 'FitWeightsHook':
            hook.complete = True


def draw_predictions(cfg: Config, folder: str) -> None:
    """Save every test image with its prediction below a folder, by the task's own visualizer."""
    if cfg.get('launcher', 'none') != 'none':
        raise ValueError('--show-dir draws in one process: use tools/test.py without a launcher')
    folder = str(Path(folder).resolve())
    hooks = dict(
        mmpretrain=dict(type='ClassPicturesHook', enable=True, interval=1, out_dir=folder),
        mmseg=dict(type='SegVisualizationHook', draw=True),
        mmdet=dict(type='DetVisualizationHook', draw=True, test_out_dir=folder),
    )
    painters = dict(
        mmpretrain='UniversalVisualizer', mmseg='SegLocalVisualizer', mmdet='DetLocalVisualizer'
    )
    if cfg.default_scope not in hooks:
        raise ValueError(f'--show-dir draws for {", ".join(hooks)}, not for {cfg.default_scope!r}')
    cfg.default_hooks.visualization = hooks[cfg.default_scope]
    cfg.visualizer = dict(
        type=painters[cfg.default_scope],
        name='predictions',
        vis_backends=[dict(type='LocalVisBackend')],
        save_dir=folder,
    )


def adapt_to_device(cfg: Config) -> None:
    """Let a config written for GPUs run on a machine without one: gloo, no pinned memory."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name) or {}
        if loader.get('num_workers') == 0:
            loader.persistent_workers = False  # torch refuses the pair
        if not torch.cuda.is_available() and loader.get('pin_memory'):
            loader.pin_memory = False
    if torch.cuda.is_available() or cfg.get('launcher', 'none') == 'none':
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(f'launcher {cfg.launcher!r} needs GPUs; on CPUs use tools/dist_train.sh')
    _use_plain_batch_norm(cfg.model)
    # MMEngine's own set-up calls torch.cuda.set_device and hands DDP a device id, both of which
    # need CUDA.
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )


def _use_plain_batch_norm(node: object) -> None:
    """SyncBN needs CUDA; a single process has it replaced by MMEngine."""
    if isinstance(node, dict):
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            _use_plain_batch_norm(child)
