"""What makes two runs the same experiment, and what a checkpoint keeps of it."""

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
# Hooks that look on: with or without them the same weights come out.
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
MAX_LISTED = 8  # differences in one message

Meta = Mapping[str, Any]


def experiment(cfg: Config) -> dict:
    """The parts of a config that make a run what it is, however fast its images are loaded."""
    parts = {key: cfg[key] for key in EXPERIMENT if key in cfg}
    loader = parts.get('train_dataloader') or {}
    parts['train_dataloader'] = {key: loader[key] for key in loader if key not in LOADING}
    return parts


def is_same(change: Change, same_tokenizer: Callable[[str, str], bool | None]) -> bool:
    """Whether a change names the same thing in other words.

    A moved folder is no other experiment: places differ if both still exist and are not the same,
    or if both are pinned to a hash (see `pins`) and these differ. Initial weights of a backbone
    are taken as they are. `vocab_size=None` is that of the tokenizer, so it agrees with any number.

    Args:
        same_tokenizer: whether the old and new places hold the same weights of the tokenizer;
            None where that cannot be told, then they are compared as folders.
    """
    old, new = change.old, change.new
    if change.name == 'model.head.vocab_size' and None in (old, new):
        return True  # no other one works
    if change.key[-1] not in PLACES or not (isinstance(old, str) and isinstance(new, str)):
        return False
    if change.key[:3] == ('model', 'backbone', 'init_cfg'):
        return True
    (old, old_pin), (new, new_pin) = split_pin(old), split_pin(new)
    if old_pin and new_pin:
        return old_pin == new_pin
    if change.key[:2] == ('model', 'target_generator'):
        same = same_tokenizer(old, new)
        if same is not None:
            return same
    return not (Path(old).exists() and Path(new).exists()) or Path(old).samefile(new)


def run_facts(cfg: Config, world_size: int, epoch_length: int | None = None) -> dict:
    """What goes into meta['run'] of a checkpoint: numbers, strings, lists and dicts only.

    Args:
        world_size: number of processes.
        epoch_length: iterations per epoch, from which `resume.rescaled_position` computes.
    """
    return dict(world_size=world_size, epoch_length=epoch_length, settings=_plain(experiment(cfg)))


def images_per_iteration(facts: Mapping[str, Any]) -> int:
    """Images that all processes of the run of these `run_facts` take per iteration."""
    batch_size = facts['settings']['train_dataloader'].get('batch_size', 1)  # as DataLoader
    return batch_size * facts['world_size']


def check_same_run(
    saved_meta: Meta,
    cfg: Config,
    world_size: int,
    allow: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Refuse to go on from a checkpoint with other settings or another number of processes.

    These may differ freely: folders of data, the place of the tokenizer (`TokenizerIdentityHook`
    compares its SHA-256) and of a backbone's initial weights, how images are loaded, when to
    validate, log and save, and hooks that only look on (`OBSERVERS`).

    Args:
        saved_meta: checkpoint['meta'] with the 'run' of `run_facts`; without it a warning is all.
        allow: go on nevertheless, after a report of the differences and what they mean.

    Raises:
        ValueError: there are differences.
    """
    saved = saved_meta.get('run')
    if not isinstance(saved, Mapping) or not isinstance(saved.get('settings'), Mapping):
        report(
            'warning: the checkpoint does not say with which settings it was made, so they were '
            'not compared'
        )
        return
    current = run_facts(cfg, world_size)
    changes = _changes(saved, current)
    if not changes:
        return
    listed = '; '.join(map(str, changes[:MAX_LISTED]))
    if len(changes) > MAX_LISTED:
        listed += f'; and {len(changes) - MAX_LISTED} more'
    if not allow:
        raise ValueError(
            f'this checkpoint belongs to a run of other settings (its -> the ones now): {listed}. '
            'To start another run from its weights, give another --work-dir and load_from=FILE; '
            'to go on with the new settings all the same, give --allow-changes'
        )
    report(f'going on with other settings (the checkpoint -> now): {listed}')
    for line in _consequences(saved, current, changes):
        report(f'- {line}')


def _changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Change]:
    sizes = ({'world_size': facts['world_size']} for facts in (saved, current))
    settings = (_decisive(facts['settings']) for facts in (saved, current))
    watched = 'TokenizerIdentityHook' in _hook_names(current['settings'])
    found = differences(*sizes) + differences(*settings)
    return [change for change in found if not _is_free(change, watched)]


def _is_free(change: Change, tokenizer_is_watched: bool) -> bool:
    if change.key[-1] == 'data_root' or change.key[:3] == ('model', 'backbone', 'init_cfg'):
        return True
    return is_same(change, lambda old, new: tokenizer_is_watched or None)


def _decisive(settings: Mapping[str, Any]) -> dict:
    """Leave out the hooks that look on, and when to validate."""
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


def _consequences(
    saved: Mapping[str, Any], current: Mapping[str, Any], changes: list[Change]
) -> list[str]:
    """Say what the changes mean for the rest of the run."""
    lines = []
    old, new = images_per_iteration(saved), images_per_iteration(current)
    if old != new:
        lines += [
            f'an iteration takes {new} images instead of {old}, so an epoch has another number of '
            'iterations: the run goes on after as many images, rounded down to whole batches, '
            'which shows fewer than one batch of images again',
            'the learning rate is not adapted to the batch, and schedules that count iterations '
            'keep their length: keep train_dataloader.batch_size x processes to avoid both',
        ]
    elif saved['world_size'] != current['world_size']:
        lines.append(
            f'an iteration takes {new} images as before, so learning rate, epochs and schedules '
            'stay: the same images come in the same order with the same crops, grouped otherwise '
            'by process; dropout and stochastic depth are drawn per process and differ'
        )
    if any(c.key[0] in ('optim_wrapper', 'param_scheduler', 'train_cfg') for c in changes):
        lines.append(
            'MMEngine takes learning rates, weight decay and schedules from the checkpoint, not '
            'from the config; for others, start another run with load_from'
        )
    if any(c.key[0] == 'randomness' for c in changes):
        lines.append('MMEngine takes the seed from the checkpoint')
    return lines


def _plain(value: Any) -> Any:
    """Turn a part of a config into what JSON and weights_only loading know."""
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
