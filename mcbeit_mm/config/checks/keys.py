"""Finds the misspelt keys of a config before anything is built."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

# What Runner takes, and reads from the config beside.
RUNNER_ARGUMENTS = set(inspect.signature(Runner.__init__).parameters) - {'self'} | {
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}
ANY = '**'
# What builders take out of a node, or add to it, before its class sees the rest: MMEngine's
# build_from_cfg, build_scheduler_from_cfg, Runner.register_hook, build_train_loop, update_init_info
# and mmcv's build_norm_layer.
POPPED = {'type', '_scope_', '_delete_'}
POPPED_BELOW = {
    'custom_hooks': {'priority'},
    'default_hooks': {'priority'},
    'param_scheduler': {'convert_to_iter_based'},
    'optim_wrapper': {'constructor', 'paramwise_cfg'},
    'train_cfg': {'by_epoch'},
    'init_cfg': {'name', 'layer', 'override'},
    'norm_cfg': {'requires_grad'},
    'dcn': {'fallback_on_stride'},  # mmdet's ResNet
    'upsample_cfg': {'scale_factor'},  # mmdet's FCNMaskHead
    'loss_cls': {'bg_cls_weight'},  # mmdet's DETRHead
    'policies': {'magnitude_key', 'magnitude_range'},  # mmpretrain's RandAugment
    'vis_backends': {'name'},
}
# What Runner builds where a node has no type.
DEFAULT_TYPES = dict(
    optim_wrapper='OptimWrapper', val_cfg='ValLoop', test_cfg='TestLoop',
    log_processor='LogProcessor', visualizer='Visualizer',
)  # fmt: skip
# Runner.build_dataloader takes these beside the arguments of DataLoader.
LOADER_KEYS = {'num_batch_per_epoch', 'disable_subprocess_warning'}
# Runner.register_default_hooks
DEFAULT_HOOKS = {'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'}
# Registries whose classes are built by other programs than Runner's.
UNUSED = {'runner', 'runner constructor', 'strategy', 'inferencer', 'function'}


def check_keys(cfg: Config) -> None:
    """Raise ValueError for a key that nothing in the config's library takes.

    Checked are the arguments of every node with a `type`, of the data loaders, of clip_grad and of
    paramwise_cfg. Where a key may be anything (at the top level, in default_hooks, for a class
    that uses its **kwargs itself), only a near miss of a known one is refused. For a class that
    cannot be judged so, MCBEIT_CHECK_KEYS=0 leaves all this out.
    """
    if os.environ.get('MCBEIT_CHECK_KEYS') == '0':
        return
    top = RUNNER_ARGUMENTS
    _check_near_misses('the config', set(cfg), top | {'custom_imports'})
    hooks = cfg.get('default_hooks') or {}
    _check_near_misses('default_hooks', set(hooks), DEFAULT_HOOKS)
    for name, hook in hooks.items():
        if isinstance(hook, dict) and 'type' not in hook:
            near = difflib.get_close_matches(name, set(hooks) - {name}, n=1)
            hint = f', did you mean {near[0]}?' if near else ''
            raise ValueError(f'default_hooks.{name} has no type{hint}')
    loader = set(inspect.signature(DataLoader.__init__).parameters) - {'self'} | LOADER_KEYS
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        _check(name, 'a data loader', set(cfg.get(name) or ()), loader)
    _check_optimization(cfg.get('optim_wrapper') or {})
    scope = cfg.get('default_scope')
    for name, value in cfg.items():
        if name in top:
            for place, node, node_scope in _typed_nodes(value, (name,), scope):
                _check_node(place, node, node_scope)


@cache
def class_arguments(kind: Callable) -> frozenset[str] | None:
    """Names that a class or function takes ('**': any); None if it does not tell.

    Where a constructor only hands its **kwargs on to the next one, those of that one count too.
    """
    if not inspect.isclass(kind):
        functions = [kind] if callable(kind) else []
    else:
        functions = [c.__init__ for c in kind.__mro__ if '__init__' in vars(c) and c is not object]
        if not functions:
            return frozenset() if kind.__new__ is object.__new__ else None
    names: set[str] = set()
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # written in C
            return None
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        rest = [p.name for p in parameters if p.kind == p.VAR_KEYWORD]
        if not rest:
            return frozenset(names - {'self'})
        read = _keys_read(function, rest[0])
        if read is None:
            break
        names |= read
    return frozenset(names - {'self'} | {ANY})


def _keys_read(function: Callable, kwargs: str) -> set[str] | None:
    """Keys that a constructor reads from its **kwargs; None if it uses them in other ways too."""
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except OSError:
        return None
    read = rf'\b{kwargs}(?:\.(?:get|pop|setdefault)\(|\[)\s*[\'"](\w+)'
    names = set(re.findall(read, source))
    owner = function.__qualname__.rpartition('.')[0]
    handed_on = rf'super\((?:{owner},\s*self)?\)\.__init__\((?:[^()]|\([^()]*\))*\*\*{kwargs}\b'
    source, calls = re.subn(handed_on, '', re.sub(read, '', source))
    others = re.findall(rf'\b{kwargs}\b', source)
    return names if calls and len(others) == 1 else None  # the one in the signature


def _typed_nodes(
    node: object, place: tuple[str, ...], scope: str | None
) -> Iterator[tuple[tuple[str, ...], dict, str | None]]:
    """All nodes with a type, with their place and the scope in which MMEngine builds them."""
    if isinstance(node, dict):
        scope = node.get('_scope_', scope)
        if 'type' in node or (len(place) == 1 and place[0] in DEFAULT_TYPES):
            yield place, node, scope
        children = [(str(key), node[key]) for key in node]  # so that lazy types are resolved
    elif isinstance(node, list | tuple):
        children = [(str(index), child) for index, child in enumerate(node)]
    else:
        return
    for key, child in children:
        yield from _typed_nodes(child, (*place, key), scope)


def arguments_of(node: object, scope: str | None) -> frozenset[str] | None:
    """Names that the class of a node takes ('**': any); None if unknown."""
    kind = node.get('type') if isinstance(node, dict) else None
    found = [class_arguments(kind) for kind in _kinds(kind, scope)]
    return None if not found or None in found else frozenset().union(*found)


def _kinds(kind: object, scope: str | None) -> tuple[Callable, ...]:
    if isinstance(kind, str):
        return _classes(kind, scope)
    return () if kind is None else (kind,)


def _check_node(place: tuple[str, ...], node: dict, scope: str | None) -> None:
    kind = node.get('type', DEFAULT_TYPES.get(place[0]))
    known = arguments_of(dict(type=kind), scope)
    if known is None:
        return
    popped = POPPED.union(*(POPPED_BELOW.get(part, ()) for part in place))
    if ANY in known:
        _check_near_misses('.'.join(place), set(node), known | popped)
    else:
        _check('.'.join(place), _name(_kinds(kind, scope)[0]), set(node) - popped, known)


@cache
def _classes(name: str, scope: str | None) -> tuple[Callable, ...]:
    """All that a name may stand for: registries of models and of tasks share some names."""
    source = import_module(f'{scope}.registry') if scope else mmengine.registry
    registries = [r for r in vars(source).values() if isinstance(r, Registry)]
    found = [_find(r, name) for r in registries if r.name.replace('_', ' ') not in UNUSED]
    return tuple(dict.fromkeys(kind for kind in found if kind is not None))


def _find(registry: Registry | None, name: str) -> Callable | None:
    """As Registry.get, which takes long to say that a registry has no such name."""
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
        known = set(inspect.signature(function).parameters)
        _check('optim_wrapper.clip_grad', function.__name__, set(clip) - {'type'}, known)
    if wrapper.get('constructor', 'DefaultOptimWrapperConstructor').startswith('Default'):
        known = {
            'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult',
            'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate', 'custom_keys',
        }  # fmt: skip
        given = set(wrapper.get('paramwise_cfg') or ())
        _check('optim_wrapper.paramwise_cfg', 'DefaultOptimWrapperConstructor', given, known)


def _check(place: str, taker: str, given: set[str], known: set[str]) -> None:
    for key in sorted(given - known):
        near = difflib.get_close_matches(key, known, n=3)
        hint = (
            f'did you mean {", ".join(near)}?' if near else 'it takes ' + ', '.join(sorted(known))
        )
        raise ValueError(f'{place}.{key}: {taker} takes no {key!r}; {hint}')


def _check_near_misses(place: str, given: set[str], known: set[str]) -> None:
    """Refuse what is only a slip away from a known key: a free variable hardly is."""
    for key in sorted(given - known):
        slips = [k for k in known if sorted(k) == sorted(key)]  # letters changed places
        if near := slips or difflib.get_close_matches(key, known, n=1, cutoff=0.9):
            raise ValueError(f'{place} has a key {key!r}, did you mean {near[0]}?')


def _name(kind: Callable) -> str:
    return getattr(kind, '__name__', str(kind))
