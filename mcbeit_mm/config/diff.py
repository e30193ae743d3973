"""Differences of two configs by leaf; MMEngine's Config.diff compares formatted text."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from .checks.keys import TOP_LEVEL
from .launch import load_config, warnings_only

Key = tuple[str, ...]


class _Absent:
    def __repr__(self) -> str:
        return '(absent)'


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """A leaf in which two configs differ; ABSENT stands for a missing key."""

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
    """Return the part of a config that a runner reads, without helper variables."""
    return {key: value for key, value in cfg.items() if key in TOP_LEVEL}


def compare_files(
    a: str, b: str, cfg_options: Sequence[str] = (), everything: bool = False
) -> list[Change]:
    """Return the differences of two config files after inheritance.

    Args:
        cfg_options: overrides of b, `key=value`.
        everything: include variables that only config files read.
    """
    with warnings_only():  # not a line for each environment variable
        cfgs = load_config(a), load_config(b, cfg_options)
    return differences(*(dict(cfg.items()) if everything else settings(cfg) for cfg in cfgs))


def differences(old: Any, new: Any, key: Key = ()) -> list[Change]:
    """Return the leaves in which two configs, or parts of them, differ, in order of their keys.

    Steps of a list (pipelines, hooks) are named by type: `pipeline.RandomPatchMask.mask_ratio`, and
    `RandomFlip#2` for the second of a type. A list is a leaf if it holds only plain values, or the
    same steps in another order. A list and a tuple of equal elements are equal.
    """
    a, b = _parts(old), _parts(new)
    same_kind = isinstance(old, Mapping) == isinstance(new, Mapping)
    if a is not None and b is not None and same_kind:
        in_order = isinstance(old, Mapping) or [n for n in a if n in b] == [n for n in b if n in a]
        if in_order:
            pairs = [(n, a.get(n, ABSENT), b.get(n, ABSENT)) for n in dict.fromkeys([*a, *b])]
            return [c for name, x, y in pairs for c in differences(x, y, (*key, name))]
    elif _as_list(old) == _as_list(new):
        return []
    return [Change(key, old, new)]


def _parts(node: Any) -> dict[str, Any] | None:
    """Return children by name (lists: by type or index); None for plain values, lists of them."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if not isinstance(node, list | tuple):
        return None
    if node and not any(isinstance(element, Mapping | list | tuple) for element in node):
        return None
    parts: dict[str, Any] = {}
    for index, step in enumerate(node):
        kind = step.get('type') if isinstance(step, Mapping) else None
        name = str(index) if kind is None else kind if isinstance(kind, str) else as_text(kind)
        count = sum(label.partition('#')[0] == name for label in parts)
        parts[f'{name}#{count + 1}' if count else name] = step
    return parts


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
