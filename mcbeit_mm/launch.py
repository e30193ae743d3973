"""What the command-line tools share: reading configs, early checks, one-line errors."""

import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset

from .class_check import check_classes, innermost_dataset
from .grid_check import check_grids
from .options import check_option, parse_options


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Print the given errors as one line and exit with 2; MCBEIT_TRACEBACK=1 shows where."""
    try:
        yield
    except kinds as error:
        if os.environ.get('MCBEIT_TRACEBACK') == '1':
            raise
        text = ' '.join(str(error.args[0] if len(error.args) == 1 else error).split())
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


def find_checkpoint(path: str | Path) -> Path:
    """Return the file itself, or the newest checkpoint of a work dir (which may have moved)."""
    path = Path(path)
    if path.is_file():
        return path
    noted = path / 'last_checkpoint'
    names = [path / Path(noted.read_text().strip()).name] if noted.is_file() else []
    names += sorted(path.glob('*.pth'), key=lambda file: file.stat().st_mtime, reverse=True)
    found = next((file for file in names if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f'no checkpoint {path}: give a .pth file or the work dir of a run')
    return found


def checkpoint_to_resume(work_dir: str, resume: str) -> str | None:
    """What `--resume` means: a file, the newest of a work dir, or 'auto', which may start anew."""
    if resume != 'auto':
        return str(find_checkpoint(resume))
    try:
        return str(find_checkpoint(work_dir))
    except FileNotFoundError:
        print(f'nothing to resume in {work_dir}: starting from the beginning', file=sys.stderr)
        return None


def skip_initial_weights(runner: Runner) -> None:
    """Leave out the pretrained weights of a run that is resumed; its config still names them."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if hasattr(model, 'backbone'):
        model.backbone.init_cfg = None


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


def demand_all_weights(cfg: Config) -> None:
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


def check_before_run(cfg: Config, testing: bool = False) -> None:
    """Find at once what would fail minutes later: folders, sizes, weights, precision."""
    loaders = ('test_dataloader',) if testing else ('train_dataloader', 'val_dataloader')
    for name in loaders:
        if cfg.get(name):
            _check_dataset(name, cfg[name].dataset)
            _check_annotations(cfg.get(name.replace('dataloader', 'evaluator')))
    if cfg.get('default_scope') == 'mmpretrain':
        check_classes(cfg, loaders)
    if not testing:
        check_grids(cfg)
        _check_length(cfg)
    path = cfg.get('load_from')
    if path and '://' not in path and not Path(path).exists():
        raise FileNotFoundError(f'load_from: no file {path}; set MCBEIT_WEIGHTS=FILE or load_from')
    if not (testing or cfg.get('resume')):
        _check_initial_weights(cfg.model.get('backbone', {}).get('init_cfg'))
    wrapper = cfg.get('optim_wrapper', {})
    amp = wrapper.get('type') == 'AmpOptimWrapper' and not testing
    if amp and not torch.cuda.is_available():
        raise ValueError(
            'this config trains in fp16, which needs a GPU: add --precision bf16 (or fp32)'
        )


def _check_length(cfg: Config) -> None:
    planned, actual = cfg.model.get('total_iters'), cfg.get('train_cfg', {}).get('max_iters')
    if planned and actual and planned != actual:
        raise ValueError(
            f'model.total_iters={planned}, where the schedules of the tokenizer end, but training '
            f'has train_cfg.max_iters={actual}: set both (and the end of param_scheduler)'
        )


def _check_initial_weights(init_cfg: ConfigDict | list | None) -> None:
    for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]:
        path = entry.get('checkpoint')
        if path and not Path(path).exists():
            raise FileNotFoundError(
                f'model.backbone.init_cfg.checkpoint: no file {path}; set MCBEIT_WEIGHTS=FILE (a '
                'checkpoint of pretraining), or to train from scratch '
                '--cfg-options model.backbone.init_cfg=None'
            )


def _check_annotations(evaluator: ConfigDict | list | None) -> None:
    for entry in evaluator if isinstance(evaluator, list) else [evaluator or {}]:
        path = entry.get('ann_file')
        if path and not Path(path).is_file():
            raise FileNotFoundError(
                f'evaluator: no annotation file {path}; set MCBEIT_DATA=FOLDER, or its ann_file'
            )


def _check_dataset(name: str, dataset: ConfigDict) -> None:
    dataset = innermost_dataset(dataset)
    root = Path(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or {}
    prefixes = [prefix] if isinstance(prefix, str) else list(prefix.values())
    for folder in [root, *(root / p for p in prefixes if isinstance(p, str))]:
        if not folder.is_dir():
            raise FileNotFoundError(
                f'{name}: no data folder {folder} (from {Path.cwd()}); set MCBEIT_DATA=FOLDER or '
                f'--cfg-options {name}.dataset.data_root=FOLDER'
            )
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not Path(classes).is_file():
        raise FileNotFoundError(f'{name}: no class list {classes}: a file of one name per line')
    if dataset.get('ann_file') and not (root / dataset.ann_file).is_file():
        raise FileNotFoundError(f'{name}: no annotation file {root / dataset.ann_file}')
    if dataset.get('type') in ('CustomDataset', 'PhotoFolder') and not dataset.get('ann_file'):
        extensions = inspect.signature(CustomDataset).parameters['extensions'].default
        extensions = tuple(dataset.get('extensions', extensions))
        if not any(file.suffix.lower() in extensions for file in folder.rglob('*')):
            raise FileNotFoundError(f'{name}: no image ({", ".join(extensions)}) below {folder}')


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
