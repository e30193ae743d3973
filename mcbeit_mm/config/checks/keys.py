"""Find misspelled config keys before anything is built."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module

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
# MMEngine's builders remove these from a node before they call its class.
BUILDER_KEYS = {'type', '_scope_', '_delete_', 'priority'}
BUILDER_KEYS |= {'constructor', 'paramwise_cfg', 'convert_to_iter_based'}
# Of torch's clip_grad_norm_ and clip_grad_value_, called at the first step.
CLIP_KEYS = {'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value'}
# DefaultOptimWrapperConstructor silently ignores any other key of paramwise_cfg.
PARAMWISE_KEYS = {
    'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult',
    'dcn_offset_lr_mult', 'bypass_duplicate', 'custom_keys',
}  # fmt: skip


def check_keys(cfg: Config) -> None:
    """Raise ValueError for a misspelled key and suggest the nearest known ones.

    Classes of this package must take every key. Elsewhere parents may remove keys before a class
    is built, and variables are free, so only near misses of a known key are refused; the rest is
    left to the class's own TypeError.
    """
    refuse_unknown('the config', cfg, TOP_LEVEL)
    refuse_unknown('default_hooks', cfg.get('default_hooks') or (), DEFAULT_HOOKS)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        refuse_unknown(name, cfg.get(name) or (), LOADER_ARGUMENTS)
    wrapper = cfg.get('optim_wrapper') or {}
    given = wrapper.get('clip_grad') or ()
    refuse_unknown('optim_wrapper.clip_grad', given, CLIP_KEYS, complete=True)
    if wrapper.get('constructor', 'Default').startswith('Default'):
        given = wrapper.get('paramwise_cfg') or ()
        refuse_unknown('optim_wrapper.paramwise_cfg', given, PARAMWISE_KEYS, complete=True)
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
    """Raise ValueError for the first unknown key; for near misses only, unless `complete`."""
    for key in sorted(set(given) - set(known)):
        swapped = [name for name in known if sorted(name) == sorted(key)]
        cutoff = 0.6 if complete else 0.9
        near = swapped or difflib.get_close_matches(key, known, n=3, cutoff=cutoff)
        if near or complete:
            takes = f'it takes {", ".join(sorted(known)) or "none"}'
            hint = f'did you mean {", ".join(near)}?' if near else takes
            raise ValueError(f'{place} has no key {key!r}; {hint}')


def arguments_of(node: dict | Config, scope: str | None) -> tuple[frozenset[str], bool]:
    """Return known keys of a node, and whether they are all (certain only for our classes)."""
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
    """Return the argument names of a class or function, and whether it takes no others.

    Constructors of this package pass **kwargs to the next one; others may read any key from it.
    """
    calls, names, complete = [kind], set(), True
    if inspect.isclass(kind):
        calls = [c.__init__ for c in kind.__mro__ if '__init__' in vars(c) and c is not object]
        if not calls:
            return frozenset(), True
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
    """Yield all nodes with a type, their place, and the scope in which MMEngine builds them."""
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
    """Return all classes of a name: registries of models and of tasks share names."""
    source = import_module(f'{scope or "mmengine"}.registry')
    registries = [value for value in vars(source).values() if isinstance(value, Registry)]
    found = [registry.get(name) for registry in registries]
    return tuple(dict.fromkeys(kind for kind in found if kind is not None))
