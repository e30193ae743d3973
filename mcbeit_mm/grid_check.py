"""Compares the sizes of views, mask, backbone and tokenizer, before anything is built."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, Registry

Grid = tuple[int, int]


def check_grids(cfg: Config) -> None:
    """Raise ValueError if the sizes of a pretraining config do not fit each other.

    Compared are, as far as the config tells them: the student view with ``backbone.img_size``, the
    mask's grid and the tokens of the tokenizer view with the patch grid, and the head's
    vocabulary with the tokenizer's. Models other than MCBEiT pass.

    Raises:
        FileNotFoundError: there is no tokenizer where the config says.
    """
    model = cfg.model
    if _name(model) != 'MCBEiT':
        return
    backbone = model.backbone
    image, patch = (_pair(_value(MODELS, backbone, key)) for key in ('img_size', 'patch_size'))
    patches = _divide(image, patch) if image and patch else None
    tokenizer = _geometry(model.target_generator)
    if tokenizer:
        check_vocab(_value(MODELS, model.head, 'vocab_size'), tokenizer['vocab_size'])
    if patches is None or not cfg.get('train_dataloader'):
        return
    for step in _steps(cfg.train_dataloader.dataset):
        view = _pair(_value(TRANSFORMS, step, 'second_size'))
        if view:
            _check_student(_pair(_value(TRANSFORMS, step, 'size')), image, _name(step))
        if view and tokenizer:
            check_tokens(view, tokenizer['stride'], patches, f' in {_name(step)}')
        _check_mask(_pair(_value(TRANSFORMS, step, 'grid_size')), patches, _name(step))


def check_tokens(view: Sequence[int], stride: int, patches: Sequence[int], where: str = '') -> None:
    """Raise ValueError unless a tokenizer view (H, W) has one token for each patch (h, w)."""
    fitting = tuple(size * stride for size in patches)
    if tuple(view) != fitting:
        tokens = 'x'.join(f'{size / stride:g}' for size in view)
        raise ValueError(
            f'the tokenizer view of {_text(view)} pixels gives {tokens} tokens (stride {stride}) '
            f'for {_text(patches)} patches: set second_size={_argument(fitting)}{where}'
        )


def check_vocab(head: int | None, tokenizer: int) -> None:
    """Raise ValueError unless the head predicts the tokenizer's codes (None: always)."""
    if head not in (None, tokenizer):
        raise ValueError(
            f'the tokenizer has {tokenizer} codes, the head predicts {head}: set '
            f"model.head.vocab_size={tokenizer} (or None: the tokenizer's)"
        )


def _check_student(view: Grid | None, image: Grid, transform: str) -> None:
    if view and view != image:
        raise ValueError(
            f'the student view has {_text(view)} pixels (size of {transform}), but '
            f'model.backbone.img_size is {_text(image)}: set size={_argument(image)} in '
            f'{transform}, or model.backbone.img_size={_argument(view)}'
        )


def _check_mask(grid: Grid | None, patches: Grid, transform: str) -> None:
    if grid and grid != patches:
        raise ValueError(
            f'the mask has {_text(grid)} patches, the backbone {_text(patches)} (img_size / '
            f'patch_size): set grid_size={_argument(patches)} in {transform}'
        )


def _geometry(config: Any) -> dict[str, int] | None:
    """Vocabulary and stride of a tokenizer's config; None where its class does not tell."""
    kind = _class(MODELS, config)
    if not hasattr(kind, 'geometry'):
        return None
    try:
        return kind.geometry(**{key: value for key, value in config.items() if key != 'type'})
    except NotImplementedError:
        return None


def _steps(node: Any) -> Iterator[dict]:
    """All transforms within a data set, also in wrapped ones and in RandomApply and the like."""
    if isinstance(node, dict):
        if 'type' in node:
            yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from _steps(child)


def _class(registry: Registry, config: dict) -> type | None:
    kind = config.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind


def _name(config: dict) -> str:
    kind = config.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def _value(registry: Registry, config: dict, key: str) -> Any:
    """An argument of a component: as the config says, else its default, else None."""
    if key in config:
        return config[key]
    kind = _class(registry, config)
    parameter = inspect.signature(kind).parameters.get(key) if inspect.isclass(kind) else None
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _pair(size: int | Sequence[int] | None) -> Grid | None:
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _divide(image: Grid, patch: Grid) -> Grid:
    return image[0] // patch[0], image[1] // patch[1]


def _text(size: Sequence[int]) -> str:
    return f'{size[0]}x{size[1]}'


def _argument(size: Sequence[int]) -> str:
    """The size as one writes it in a config."""
    return str(size[0]) if size[0] == size[1] else f'({size[0]}, {size[1]})'
