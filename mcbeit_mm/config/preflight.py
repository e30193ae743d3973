"""All checks of a config before a run: keys, files, classes, sizes, lengths, precision, disk."""

import inspect
from pathlib import Path

import torch
from mmengine import fileio
from mmengine.config import Config, ConfigDict
from mmpretrain.datasets import CustomDataset

from ..fileio.pins import split_pin
from .checks.batch import check_batch
from .checks.classes import check_classes, innermost_dataset
from .checks.disk import check_disk, count_parameters
from .checks.grids import check_grids
from .checks.keys import check_keys
from .checks.schedules import check_schedules


def check_before_run(cfg: Config, testing: bool = False, checking: bool = False) -> None:
    """Raise ValueError or FileNotFoundError, or warn, for mistakes that would show minutes later.

    Args:
        testing: check the test set only.
        checking: allow fp16 without a GPU, for tools/train.py --check.
    """
    check_keys(cfg)
    loaders = ('test_dataloader',) if testing else ('train_dataloader', 'val_dataloader')
    for name in loaders:
        if cfg.get(name):
            _check_dataset(name, cfg[name].dataset)
            for metric in _as_list(cfg.get(name.replace('dataloader', 'evaluator'))):
                message = 'evaluator: no annotation file {}; set MCBEIT_DATA=FOLDER or its ann_file'
                _require(metric.get('ann_file'), message)
    check_classes(cfg, loaders)
    _require(cfg.get('load_from'), 'load_from: no file {}; set MCBEIT_WEIGHTS=FILE or load_from')
    if testing:
        return
    check_grids(cfg)
    check_schedules(cfg)
    initial = [] if cfg.get('resume') else cfg.model.get('backbone', {}).get('init_cfg')
    for init_cfg in _as_list(initial):
        _require(
            init_cfg.get('checkpoint'),
            'model.backbone.init_cfg.checkpoint: no file {}; set MCBEIT_WEIGHTS=FILE, or '
            'train from scratch with --cfg-options model.backbone.init_cfg=None',
        )
    amp = cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper'
    if amp and not (checking or torch.cuda.is_available()):
        raise ValueError(
            'this config trains in fp16, which needs a GPU: use --precision bf16 or fp32'
        )
    check_batch(cfg)
    if cfg.get('work_dir'):
        check_disk(cfg, *count_parameters(cfg))


def _as_list(node: ConfigDict | list | None) -> list[ConfigDict]:
    return node if isinstance(node, list) else [node] if node else []


def _require(path: str | None, message: str) -> None:
    """Raise FileNotFoundError if a file, which may have a pin, does not exist; URLs pass."""
    if path:
        path, _ = split_pin(path)
        if '://' not in path and not Path(path).exists():
            raise FileNotFoundError(message.format(path))


def _check_dataset(name: str, dataset: ConfigDict) -> None:
    dataset = innermost_dataset(dataset)
    root = dataset.get('data_root') or '.'
    prefix = dataset.get('data_prefix') or {}
    prefixes = [prefix] if isinstance(prefix, str) else list(prefix.values())
    for folder in [root, *(fileio.join_path(root, p) for p in prefixes if isinstance(p, str))]:
        if not fileio.isdir(folder):
            raise FileNotFoundError(
                f'{name}: no data folder {folder} (from {Path.cwd()}); set MCBEIT_DATA=FOLDER or '
                f'--cfg-options {name}.dataset.data_root=FOLDER'
            )
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):
        _require(classes, f'{name}: no class list {{}}, a file with one name per line')
    if dataset.get('ann_file'):
        annotations = fileio.join_path(root, dataset.ann_file)
        if not fileio.isfile(annotations):
            raise FileNotFoundError(f'{name}: no annotation file {annotations}')
    elif dataset.get('type') in ('CustomDataset', 'PhotoFolder'):
        extensions = inspect.signature(CustomDataset).parameters['extensions'].default
        extensions = tuple(dataset.get('extensions', extensions))
        files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
        if not any(file.lower().endswith(extensions) for file in files):
            raise FileNotFoundError(f'{name}: no image ({", ".join(extensions)}) in {folder}')
