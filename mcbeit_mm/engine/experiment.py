"""Compare a run with the one that wrote a checkpoint: settings, processes, batch size."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config.diff import Change, as_text, differences
from ..fileio.pins import split_pin

EXPERIMENT = (
    'model',
    'data_preprocessor',
    'custom_hooks',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'randomness',
)
LOADING = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')
PLACES = ('data_root', 'checkpoint', 'vgg_weights', 'cache')  # differ from machine to machine
VALIDATION = ('val_begin', 'val_interval', 'dynamic_intervals')  # of train_cfg
# Hooks that do not change the trained weights.
OBSERVERS = (
    'BadSamplesHook',
    'ClassPicturesHook',
    'EmptyCacheHook',
    'ExportTokenizerHook',
    'InterruptHook',
    'KNNHook',
    'MemoryProfileHook',
    'ProfilerHook',
    'ReconstructionHook',
    'ThroughputHook',
)
TOKENIZER = ('model', 'target_generator', 'checkpoint')


def experiment(cfg: Config) -> dict:
    """Return the parts of a config that influence the result, without how images are loaded.

    They contain JSON types only.
    """
    parts = {key: cfg[key] for key in EXPERIMENT if key in cfg}
    loader = parts.get('train_dataloader') or {}
    parts['train_dataloader'] = {key: loader[key] for key in loader if key not in LOADING}
    return json.loads(json.dumps(parts, default=as_text))


def run_facts(cfg: Config, world_size: int, epoch_length: int | None = None) -> dict:
    """Return meta['run'] of a checkpoint.

    Args:
        world_size: number of processes.
        epoch_length: iterations per epoch, for `resume.move_position`; None for a loop over
            iterations.
    """
    return dict(world_size=world_size, epoch_length=epoch_length, settings=experiment(cfg))


def images_per_iteration(facts: Mapping[str, Any]) -> int:
    """Return the batch size over all processes, from `run_facts`."""
    batch_size = facts['settings']['train_dataloader'].get('batch_size', 1)  # as DataLoader
    return batch_size * facts['world_size']


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two `experiment`s that change the result.

    Ignores hooks that only observe (`OBSERVERS`), the validation schedule, a backbone's initial
    weights, and moved files: paths differ if both still exist and are not the same, or if both are
    pinned to different hashes.
    """
    found = differences(_relevant(old), _relevant(new))
    return [change for change in found if not _is_same(change)]


def check_same_run(
    meta: Mapping[str, Any],
    cfg: Config,
    world_size: int,
    allow: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Refuse to resume if there are `setting_changes` or another number of processes.

    The path of a tokenizer may differ if `TokenizerIdentityHook` compares its SHA-256.

    Args:
        meta: checkpoint['meta'] with 'run', see `run_facts`; without it, only warn.
        allow: report differences instead of raising.

    Raises:
        ValueError: there are differences.
    """
    saved = meta.get('run')
    if not isinstance(saved, Mapping) or not isinstance(saved.get('settings'), Mapping):
        report('warning: the checkpoint does not record its settings, so they are not compared')
        return
    old, new = saved['settings'], experiment(cfg)
    changes = differences({'world_size': saved['world_size']}, {'world_size': world_size})
    changes += setting_changes(old, new)
    if 'TokenizerIdentityHook' in _hook_names(new):
        changes = [change for change in changes if change.key != TOKENIZER]
    if not changes:
        return
    listed = '; '.join(map(str, changes))
    if not allow:
        raise ValueError(
            f'the checkpoint was saved with different settings (saved -> current): {listed}. Use '
            'another --work-dir and load_from=FILE to start a new run from its weights, or '
            '--allow-changes to resume with the current settings'
        )
    report(f'resuming with different settings (saved -> current): {listed}')


def _is_same(change: Change) -> bool:
    """Whether a change only renames: a moved file, the tokenizer's own vocab_size spelled out."""
    old, new = change.old, change.new
    if change.name == 'model.head.vocab_size' and None in (old, new):
        return True
    if change.key[-1] not in PLACES or not (isinstance(old, str) and isinstance(new, str)):
        return False
    (old, old_pin), (new, new_pin) = split_pin(old), split_pin(new)
    if old_pin and new_pin:
        return old_pin == new_pin
    return not (Path(old).exists() and Path(new).exists()) or Path(old).samefile(new)


def _relevant(settings: Mapping[str, Any]) -> dict:
    """Drop what `setting_changes` ignores, except moved files."""
    hooks, loop = settings.get('custom_hooks') or [], settings.get('train_cfg') or {}
    named = zip(hooks, _hook_names(settings), strict=True)
    kept = dict(
        settings,
        custom_hooks=[hook for hook, name in named if name not in OBSERVERS],
        train_cfg={key: loop[key] for key in loop if key not in VALIDATION},
    )
    if model := settings.get('model'):
        backbone = model.get('backbone') or {}
        free = {key: backbone[key] for key in backbone if key != 'init_cfg'}
        kept['model'] = dict(model, backbone=free)
    return kept


def _hook_names(settings: Mapping[str, Any]) -> list[str]:
    """Return the class names of the custom hooks."""
    hooks = settings.get('custom_hooks') or []
    types = [hook.get('type') if isinstance(hook, Mapping) else hook for hook in hooks]
    return [str(kind).split('.')[-1] for kind in types]
