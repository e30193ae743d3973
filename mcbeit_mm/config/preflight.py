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
            _check_annotations(cfg.get(name.replace('dataloader', 'evaluator')))
    check_classes(cfg, loaders)
    _check_load_from(cfg.get('load_from'))
    if testing:
        return
    check_grids(cfg)
    check_schedules(cfg)
    if not cfg.get('resume'):
        _check_initial_weights(cfg.model.get('backbone', {}).get('init_cfg'))
    amp = cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper'
    if amp and not (checking or torch.cuda.is_available()):
        raise ValueError(
            'this config trains in fp16, which needs a GPU: use --precision bf16 or fp32'
        )
    check_batch(cfg)
    if cfg.get('work_dir'):
        check_disk(cfg, *count_parameters(cfg))


def _check_load_from(path: str | None) -> None:
    if path and not _exists(path):
        raise FileNotFoundError(f'load_from: no file {path}; set MCBEIT_WEIGHTS=FILE or load_from')


def _check_initial_weights(init_cfg: ConfigDict | list | None) -> None:
    for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]:
        path = entry.get('checkpoint')
        if path and not _exists(path):
            raise FileNotFoundError(
                f'model.backbone.init_cfg.checkpoint: no file {path}; set MCBEIT_WEIGHTS=FILE (a '
                'pretraining checkpoint), or train from scratch with '
                '--cfg-options model.backbone.init_cfg=None'
            )


def _exists(path: str) -> bool:
    """Whether a file, without its pin, exists; URLs are not looked up."""
    path, _ = split_pin(path)
    return '://' in path or Path(path).exists()


def _check_annotations(evaluator: ConfigDict | list | None) -> None:
    for entry in evaluator if isinstance(evaluator, list) else [evaluator or {}]:
        path = entry.get('ann_file')
        if path and not Path(path).is_file():
            raise FileNotFoundError(
                f'evaluator: no annotation file {path}; set MCBEIT_DATA=FOLDER or its ann_file'
            )


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
    if isinstance(classes, str) and not Path(classes).is_file():
        raise FileNotFoundError(f'{name}: no class list {classes}, a file with one name per line')
    if dataset.get('ann_file'):
        annotations = fileio.join_path(root, dataset.ann_file)
        if not fileio.isfile(annotations):
            raise FileNotFoundError(f'{name}: no annotation file {annotations}')
    if dataset.get('type') in ('CustomDataset', 'PhotoFolder') and not dataset.get('ann_file'):
        extensions = inspect.signature(CustomDataset).parameters['extensions'].default
        extensions = tuple(dataset.get('extensions', extensions))
        files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
        if not any(file.lower().endswith(extensions) for file in files):
            raise FileNotFoundError(f'{name}: no image ({", ".join(extensions)}) in {folder}')
