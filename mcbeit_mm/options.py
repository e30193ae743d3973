"""Overrides from the command line: a misspelt key is refused with a proposal."""

import argparse
import difflib
import inspect
from collections.abc import Sequence
from importlib import import_module

import mmengine.registry
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner

# What Runner reads from the config beside its own arguments.
RUNNER_KEYS = {
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}


def parse_options(options: Sequence[str]) -> dict:
    """Parse `key=value` words as OpenMMLab's --cfg-options does."""
    wrong = [option for option in options if '=' not in option]
    if wrong:
        raise ValueError(f'--cfg-options takes key=value, got {" ".join(wrong)}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    return parser.parse_args(['--options', *options]).options or {}


def check_option(cfg: Config, key: str) -> None:
    """ValueError unless the config has the dotted key or the class it goes to takes it."""
    node, walked = cfg, []
    for part in key.split('.'):
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(
                    f'--cfg-options {key}: {".".join(walked)} has {len(node)} entries, no {part!r}'
                )
            node = node[int(part)]
        elif isinstance(node, Config | ConfigDict | dict) and part in node:
            node = node[part]
        else:
            known = list(node) if isinstance(node, Config | ConfigDict | dict) else []
            arguments = _arguments(node, not walked, cfg.get('default_scope'))
            if not isinstance(node, Config | ConfigDict | dict):
                place = '.'.join(walked)
                raise ValueError(
                    f'--cfg-options {key}: {place} is {node!r} and has no key {part!r}'
                )
            if arguments is not None and (part in arguments or '**' in arguments):
                return
            near = difflib.get_close_matches(part, known + list(arguments or ()), n=3)
            place = '.'.join(walked) or 'the config'
            hint = f'; did you mean {", ".join(near)}?' if near else f'; it has {", ".join(known)}'
            raise ValueError(f'--cfg-options {key}: {place} has no key {part!r}{hint}')
        walked.append(part)


def _arguments(node: object, top: bool, scope: str | None) -> set[str] | None:
    """Arguments of the class that a config node builds ('**': any); None if unknown."""
    if top:
        return set(inspect.signature(Runner.__init__).parameters) - {'self'} | RUNNER_KEYS
    kind = node.get('type') if isinstance(node, ConfigDict | dict) else None
    if isinstance(kind, str):
        kind = _class_named(kind, scope)
    if not inspect.isclass(kind):
        return None
    names: set[str] = set()
    for cls in kind.__mro__:
        if '__init__' not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names - {'self'}
    return names - {'self'} | {'**'}


def _class_named(name: str, scope: str | None) -> object:
    if scope:
        import_module(f'{scope}.registry')  # so that the library's own classes are found
    registries = [r for r in vars(mmengine.registry).values() if isinstance(r, Registry)]
    names = [f'{scope}.{name}', name] if scope else [name]
    found = (registry.get(n) for registry in registries for n in names)
    return next((cls for cls in found if cls is not None), None)
