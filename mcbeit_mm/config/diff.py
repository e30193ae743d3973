"""The leaves in which two configs differ, as data; MMEngine's Config.diff compares printed text."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from .checks.keys import TOP_LEVEL
from .launch import load_config, warnings_only

Key = tuple[str, ...]
ORDER = '(order)'  # last part of the key when a list holds the same steps in another order


class _Absent:
    def __repr__(self) -> str:
        return '(absent)'


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """A leaf in which two configs differ; a side without the key is ABSENT."""

    key: Key
    old: Any
    new: Any

    @property
    def name(self) -> str:
        """Dotted key, with steps of a list named by their type."""
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
    """The part of a config that a runner reads, without helper variables of the files."""
    return {key: value for key, value in cfg.items() if key in TOP_LEVEL}


def compare_files(
    a: str, b: str, cfg_options: Sequence[str] = (), everything: bool = False
) -> list[Change]:
    """Differences of two config files once inheritance is resolved.

    Args:
        cfg_options: overrides of b, `key=value`.
        everything: also variables that only config files themselves read.
    """
    with warnings_only():  # not a line for each environment variable
        cfgs = load_config(a), load_config(b, cfg_options)
    return differences(*(dict(cfg.items()) if everything else settings(cfg) for cfg in cfgs))


def differences(old: Any, new: Any, key: Key = ()) -> list[Change]:
    """Leaves in which two configs, or parts of them, differ, in the order of their keys.

    Lists of dicts with a `type` (pipelines, hooks) are compared step by step, where steps are
    named by type: `pipeline.RandomPatchMask.mask_ratio`, and `RandomFlip#2` for the second of a
    type. A list and a tuple of equal elements are equal.
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
            if ABSENT in (a, b):  # an added or removed step is one change
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
