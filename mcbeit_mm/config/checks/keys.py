"""Misspelled config keys, reported before anything is built."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module

import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

PACKAGE = __name__.partition('.')[0]
# Arguments of Runner, and what it reads from the whole config.
RUNNER_ARGUMENTS = set(inspect.signature(Runner.__init__).parameters) - {'self'} | {
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}
TOP_LEVEL = RUNNER_ARGUMENTS | {'custom_imports'}
LOADER_ARGUMENTS = set(inspect.signature(DataLoader.__init__).parameters) - {'self'}
# Runner.register_default_hooks
DEFAULT_HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}
# MMEngine's builders take these out of a node before its class sees the rest.
BUILDER_KEYS = {'type', '_scope_', '_delete_', 'priority'}
BUILDER_KEYS |= {'constructor', 'paramwise_cfg', 'convert_to_iter_based'}
# DefaultOptimWrapperConstructor silently ignores any other key of paramwise_cfg.
PARAMWISE_KEYS = {
    'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult',
    'dcn_offset_lr_mult', 'bypass_duplicate', 'custom_keys',
}  # fmt: skip


def check_keys(cfg: Config) -> None:
    """Raise ValueError for a misspelled key, with the nearest known ones.

    Classes of this package must take every key. Elsewhere parents may remove keys before a class
    is built, and variables are free, so only near misses of a known key are refused; the rest is
    left to the class's own TypeError.
    """
    refuse_unknown('the config', cfg, TOP_LEVEL)
    hooks = cfg.get('default_hooks') or {}
    refuse_unknown('default_hooks', hooks, DEFAULT_HOOKS)
    for name, hook in hooks.items():
        if isinstance(hook, dict) and 'type' not in hook:
            near = difflib.get_close_matches(name, set(hooks) - {name}, n=1)
            raise ValueError(f'default_hooks.{name} has no type{_hint(near)}')
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        refuse_unknown(name, cfg.get(name) or (), LOADER_ARGUMENTS)
    _check_optimization(cfg.get('optim_wrapper') or {})
    for name in set(cfg) & RUNNER_ARGUMENTS:
        for place, node, scope in _typed_nodes(cfg[name], name, cfg.get('default_scope')):
            refuse_unknown(place, node, *arguments_of(node, scope))


def check_option(cfg: Config, option: str) -> None:
    """Raise ValueError if the dotted key of an override is misspelled, as `check_keys` does."""
    node, place, scope = cfg, '', cfg.get('default_scope')
    for part in option.split('.'):
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(f'{option}: {place} has {len(node)} entries, no {part!r}')
            node = node[int(part)]
        elif not isinstance(node, Config | dict):
            raise ValueError(f'{option}: {place} is {node!r} and has no key {part!r}')
        elif part in node:
            scope = node.get('_scope_', scope)
            node = node[part]
        else:
            known, complete = arguments_of(node, scope) if place else (TOP_LEVEL, True)
            return refuse_unknown(place or 'the config', [part], known | set(node), complete)
        place = f'{place}.{part}' if place else part


def refuse_unknown(
    place: str, given: Iterable[str], known: Iterable[str], complete: bool = False
) -> None:
    """Raise ValueError for the first key that is not known; unless `complete`, for slips only."""
    for key in sorted(set(given) - set(known)):
        swapped = [name for name in known if sorted(name) == sorted(key)]
        cutoff = 0.6 if complete else 0.9
        near = swapped or difflib.get_close_matches(key, known, n=3, cutoff=cutoff)
        if near or complete:
            takes = f'; it takes {", ".join(sorted(known)) or "none"}'
            raise ValueError(f'{place} has no key {key!r}{_hint(near) or takes}')


def arguments_of(node: dict | Config, scope: str | None) -> tuple[frozenset[str], bool]:
    """Known keys of a node, and whether its class takes no others: only ours are that certain."""
    kind = node.get('type')
    if kind is None:
        return frozenset(), False
    kinds = _classes(kind, scope) if isinstance(kind, str) else (kind,)
    found = [class_arguments(kind) for kind in kinds]
    known = BUILDER_KEYS.union(*(names for names, _ in found))
    ours = kinds and all(kind.__module__.partition('.')[0] == PACKAGE for kind in kinds)
    return frozenset(known), bool(ours) and all(complete for _, complete in found)


@cache
def class_arguments(kind: Callable) -> tuple[frozenset[str], bool]:
    """Names that a class or function takes, and whether it takes no others.

    Constructors of this package pass **kwargs to the next one; others may read any key from it.
    """
    calls, names, complete = [kind], set(), True
    if inspect.isclass(kind):
        calls = [c.__init__ for c in kind.__mro__ if '__init__' in vars(c) and c is not object]
        if not calls:
            return frozenset(), kind.__new__ is object.__new__
    for call in calls:
        try:
            parameters = inspect.signature(call).parameters.values()
        except ValueError:  # written in C
            break
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return frozenset(names - {'self'}), complete
        complete &= call.__module__.partition('.')[0] == PACKAGE
    return frozenset(names - {'self'}), False


def _typed_nodes(
    node: object, place: str, scope: str | None
) -> Iterator[tuple[str, dict, str | None]]:
    """All nodes with a type, with their place and the scope in which MMEngine builds them."""
    if isinstance(node, dict):
        scope = node.get('_scope_', scope)
        if 'type' in node:
            yield place, node, scope
        children = [(key, node[key]) for key in node]  # indexing resolves lazy types
    else:
        children = enumerate(node) if isinstance(node, list | tuple) else []
    for key, child in children:
        yield from _typed_nodes(child, f'{place}.{key}', scope)


@cache
def _classes(name: str, scope: str | None) -> tuple[Callable, ...]:
    """All classes that a name may stand for: registries of models and of tasks share names."""
    source = import_module(f'{scope or "mmengine"}.registry')
    registries = [value for value in vars(source).values() if isinstance(value, Registry)]
    found = [_find(registry, name) for registry in registries]
    return tuple(dict.fromkeys(kind for kind in found if kind is not None))


def _find(registry: Registry | None, name: str) -> Callable | None:
    """Like Registry.get, which is slow to find that a registry lacks a name."""
    if '.' in name:
        return registry.get(name)
    registry.import_from_location()
    while registry is not None and name not in registry.module_dict:
        registry = registry.parent
    return registry and registry.module_dict[name]


def _check_optimization(wrapper: dict) -> None:
    """Keys that would fail at the first step (clip_grad) or never (paramwise_cfg)."""
    if clip := wrapper.get('clip_grad'):
        norm = clip.get('type', 'norm') == 'norm'
        function = torch.nn.utils.clip_grad_norm_ if norm else torch.nn.utils.clip_grad_value_
        known = class_arguments(function)[0] | {'type'}
        refuse_unknown('optim_wrapper.clip_grad', clip, known, complete=True)
    if wrapper.get('constructor', 'DefaultOptimWrapperConstructor').startswith('Default'):
        given = wrapper.get('paramwise_cfg') or ()
        refuse_unknown('optim_wrapper.paramwise_cfg', given, PARAMWISE_KEYS, complete=True)


def _hint(near: list[str]) -> str:
    return f'; did you mean {", ".join(near)}?' if near else ''
