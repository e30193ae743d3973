"""Compare a run with the one that wrote a checkpoint: settings, processes, batch size."""

import inspect
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
INITIAL_WEIGHTS = ('model', 'backbone', 'init_cfg')
MAX_LISTED = 8  # differences in one message


def experiment(cfg: Config) -> dict:
    """Return the parts of a config that influence the result, without how images are loaded."""
    parts = {key: cfg[key] for key in EXPERIMENT if key in cfg}
    loader = parts.get('train_dataloader') or {}
    parts['train_dataloader'] = {key: loader[key] for key in loader if key not in LOADING}
    return parts


def run_facts(cfg: Config, world_size: int, epoch_length: int | None = None) -> dict:
    """Return meta['run'] of a checkpoint: numbers, strings, lists and dicts only.

    Args:
        world_size: number of processes.
        epoch_length: iterations per epoch, for `resume.rescaled_position`.
    """
    return dict(world_size=world_size, epoch_length=epoch_length, settings=_plain(experiment(cfg)))


def images_per_iteration(facts: Mapping[str, Any]) -> int:
    """Return the batch size over all processes, from `run_facts`."""
    batch_size = facts['settings']['train_dataloader'].get('batch_size', 1)  # as DataLoader
    return batch_size * facts['world_size']


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the differences between the settings of two `run_facts` that change the result.

    Ignored are hooks that only observe (`OBSERVERS`), when to validate, and moved files: paths
    differ if both still exist and are not the same, or if both are pinned to different hashes.
    """
    found = differences(_decisive(old), _decisive(new))
    return [change for change in found if not _is_same(change)]


def check_same_run(
    meta: Mapping[str, Any],
    cfg: Config,
    world_size: int,
    allow: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Refuse to resume with different settings or another number of processes.

    Besides what `setting_changes` ignores, data folders and a backbone's initial weights may
    differ, and the path of a tokenizer if `TokenizerIdentityHook` compares its SHA-256.

    Args:
        meta: checkpoint['meta'] with the 'run' of `run_facts`; without it, only warn.
        allow: report differences instead of raising.

    Raises:
        ValueError: there are differences.
    """
    saved = meta.get('run')
    if not isinstance(saved, Mapping) or not isinstance(saved.get('settings'), Mapping):
        report('warning: the checkpoint does not record its settings, so they are not compared')
        return
    changes = _refused_changes(saved, cfg, world_size)
    if not changes:
        return
    listed = '; '.join(map(str, changes[:MAX_LISTED]))
    if len(changes) > MAX_LISTED:
        listed += f'; and {len(changes) - MAX_LISTED} more'
    if not allow:
        raise ValueError(
            f'the checkpoint was saved with different settings (saved -> current): {listed}. Use '
            'another --work-dir and load_from=FILE to start a new run from its weights, or '
            '--allow-changes to resume with the current settings'
        )
    report(f'resuming with different settings (saved -> current): {listed}')


def _refused_changes(saved: Mapping[str, Any], cfg: Config, world_size: int) -> list[Change]:
    old, new = saved['settings'], _plain(experiment(cfg))
    free = [INITIAL_WEIGHTS]
    if 'TokenizerIdentityHook' in _hook_names(new):
        free.append(('model', 'target_generator', 'checkpoint'))
    return differences({'world_size': saved['world_size']}, {'world_size': world_size}) + [
        change
        for change in setting_changes(old, new)
        if change.key[-1] != 'data_root' and change.key[:3] not in free
    ]


def _is_same(change: Change) -> bool:
    """Whether a change only renames: a moved file, the tokenizer's own vocab_size spelled out."""
    old, new = change.old, change.new
    if change.name == 'model.head.vocab_size' and None in (old, new):
        return True
    if change.key[-1] not in PLACES or not (isinstance(old, str) and isinstance(new, str)):
        return False
    if change.key[:3] == INITIAL_WEIGHTS:
        return True
    (old, old_pin), (new, new_pin) = split_pin(old), split_pin(new)
    if old_pin and new_pin:
        return old_pin == new_pin
    return not (Path(old).exists() and Path(new).exists()) or Path(old).samefile(new)


def _decisive(settings: Mapping[str, Any]) -> dict:
    hooks, loop = settings.get('custom_hooks') or [], settings.get('train_cfg') or {}
    named = zip(hooks, _hook_names(settings), strict=True)
    return {
        **settings,
        'custom_hooks': [hook for hook, name in named if name not in OBSERVERS],
        'train_cfg': {key: loop[key] for key in loop if key not in VALIDATION},
    }


def _hook_names(settings: Mapping[str, Any]) -> list[str]:
    hooks = settings.get('custom_hooks') or []
    types = [hook.get('type') if isinstance(hook, Mapping) else hook for hook in hooks]
    return [str(kind).split('.')[-1] for kind in types]


def _plain(value: Any) -> Any:
    """Turn a part of a config into what JSON and weights_only loading support."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    return as_text(value) if inspect.isclass(value) or inspect.isfunction(value) else repr(value)
