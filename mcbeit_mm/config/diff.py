"""Two configs -> the leaves in which they differ, and the files that set them.

MMEngine's Config.diff compares the printed text; here the differences are data, for tables and
tests too.
"""

import ast
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .checks.keys import RUNNER_ARGUMENTS

Key = tuple[str, ...]
ORDER = '(order)'  # last part of the key when a list holds the same steps in another order
ENV = re.compile(r'\{\{[\'"]?\s*\$(\w+)\s*:\s*(\S*?)\s*[\'"]?\}\}')  # as MMEngine writes it


class _Absent:
    def __repr__(self) -> str:
        return '(absent)'


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """One leaf that two configs do not share; a side is ABSENT where there is no such key."""

    key: Key
    old: Any
    new: Any

    @property
    def name(self) -> str:
        """Dotted key; steps of a list go by their type."""
        return '.'.join(self.key)

    def __str__(self) -> str:
        return f'{self.name}: {as_text(self.old)} -> {as_text(self.new)}'


def as_text(value: Any) -> str:
    """Write a value as configs do: `dict(...)`, strings in quotes, classes by their name."""
    if isinstance(value, Mapping):
        named = all(isinstance(key, str) and key.isidentifier() for key in value)
        if named:
            return f'dict({", ".join(f"{k}={as_text(v)}" for k, v in value.items())})'
        return f'{{{", ".join(f"{k!r}: {as_text(v)}" for k, v in value.items())}}}'
    if isinstance(value, list):
        return f'[{", ".join(map(as_text, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(as_text, value))}{"," if len(value) == 1 else ""})'
    if isinstance(value, type) or inspect.isfunction(value):
        return f'{value.__module__}.{value.__qualname__}'
    return repr(value)


def settings(cfg: Config) -> dict[str, Any]:
    """What a runner reads of a config, without the helper variables of the files."""
    known = RUNNER_ARGUMENTS | {'custom_imports'}
    return {key: value for key, value in cfg.items() if key in known}


def differences(old: Any, new: Any, key: Key = ()) -> list[Change]:
    """Leaves in which two configs, or parts of them, differ, in the order of their keys.

    Lists of dicts with a `type` (pipelines, hooks) are compared step by step, a step being named
    by its type: `pipeline.RandomPatchMask.mask_ratio`, from the second of a type on
    `RandomFlip#2`. A list and a tuple of equal elements are equal.
    """
    if {isinstance(side, Mapping) for side in (old, new) if side is not ABSENT} == {True}:
        pairs = _pairs(_items(old), _items(new))
        if pairs:
            return [c for name, a, b in pairs for c in differences(a, b, (*key, name))]
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        changes = _list_differences(old, new, key)
        if changes is not None:
            return changes
    return [] if _equal(old, new) else [Change(key, old, new)]


def lookup(cfg: Any, key: Key) -> Any:
    """Value under the key of a Change; ABSENT if there is none."""
    node = cfg
    for part in key:
        if isinstance(node, list | tuple):
            labels = _labels(node)
            if part == ORDER:
                return labels
            names = labels or [str(i) for i in range(len(node))]
            node = node[names.index(part)] if part in names else ABSENT
        else:
            node = node[part] if isinstance(node, Mapping) and part in node else ABSENT
        if node is ABSENT:
            return ABSENT
    return node


def _items(node: Any) -> dict[str, Any]:
    return {} if node is ABSENT else {str(key): value for key, value in node.items()}


def _pairs(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(k, old.get(k, ABSENT), new.get(k, ABSENT)) for k in dict.fromkeys([*old, *new])]


def _list_differences(old: Sequence, new: Sequence, key: Key) -> list[Change] | None:
    """Differences by element; None if the lists are better compared as a whole."""
    labels = _labels(old), _labels(new)
    if all(labels) or (any(labels) and not (old and new)):
        changes = []
        sides = [
            dict(zip(n or (), s, strict=True)) for n, s in zip(labels, (old, new), strict=True)
        ]
        for name, a, b in _pairs(*sides):
            if ABSENT in (a, b):  # a step that came or went is one line
                changes.append(Change((*key, name), a, b))
            else:
                changes += differences(a, b, (*key, name))
        kept = [[name for name in side if name in other] for side, other in (sides, sides[::-1])]
        if kept[0] != kept[1]:
            changes.append(Change((*key, ORDER), *map(list, sides)))
        return changes
    nested = any(isinstance(element, Mapping | list | tuple) for element in [*old, *new])
    if nested and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        return [c for i, (a, b) in enumerate(pairs) for c in differences(a, b, (*key, str(i)))]
    return None


def _labels(steps: Sequence) -> list[str] | None:
    """Name each step by its type; None unless every element is a dict that has one."""
    if not all(isinstance(step, Mapping) and 'type' in step for step in steps):
        return None
    labels: list[str] = []
    for step in steps:
        kind = step['type'] if isinstance(step['type'], str) else as_text(step['type'])
        count = sum(label.split('#')[0] == kind for label in labels)
        labels.append(f'{kind}#{count + 1}' if count else kind)
    return labels


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_equal, old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_equal(old[key], new[key]) for key in old)
    return isinstance(old, bool) == isinstance(new, bool) and bool(old == new)


class ConfigFile:
    """A config file with the files it inherits from, to tell which of them set a value.

    `_base_` may hold `{{$ENV:default}}` items and paths of other packages such as
    `mmdet::_base_/default_runtime.py`. Where the inheritance cannot be followed, a value counts
    as set by the last file that could be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.values = dict(Config.fromfile(self.path, import_custom_modules=False).items())

    @cached_property
    def bases(self) -> list['ConfigFile']:
        """The files named by `_base_`, in their order."""
        text = ENV.sub(lambda found: os.environ.get(found[1], found[2]), self.path.read_text())
        try:
            (named,) = (
                ast.literal_eval(node.value)
                for node in ast.parse(text).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_base_'
            )
        except (ValueError, SyntaxError):  # none, or computed
            return []
        names = [named] if isinstance(named, str) else named
        return [base for name in names if (base := self._base(name))]

    def _base(self, name: str) -> 'ConfigFile | None':
        try:
            return ConfigFile(os.path.normpath(Config._get_cfg_path(name, str(self.path))[0]))
        except Exception:  # not installed, or a fragment that only loads as part of another
            return None

    def origin(self, key: Key) -> Path | None:
        """File that gave the key its value, or took it away; None if no file ever named it."""
        value = lookup(self.values, key)
        inherited = [(base, lookup(base.values, key)) for base in self.bases]
        base, old = next(((b, v) for b, v in inherited if v is not ABSENT), (None, ABSENT))
        if base is None and value is ABSENT:
            return next((file for b in self.bases if (file := b.origin(key))), None)
        return self.path if base is None or differences(old, value) else base.origin(key)
