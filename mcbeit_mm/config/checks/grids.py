"""Compare the sizes of views, mask, backbone and tokenizer before anything is built."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, Registry

from ...tokenizers.base import check_tokens, check_vocab, size_argument, size_text

Grid = tuple[int, int]


def check_grids(cfg: Config) -> None:
    """Raise ValueError if the sizes of a pretraining config do not match.

    As far as the config states them, the mask's grid and the tokens of the tokenizer view must
    equal the patches of the student view, the head's vocabulary the tokenizer's, and crops of a
    JPEG decoded to `enough_pixels` must not be smaller than the views. Student views may have any
    multiple of the patch size. Other models pass.

    Raises:
        FileNotFoundError: no tokenizer, or no target cache, at the config's path.
    """
    model = cfg.model
    if type_name(model) != 'MCBEiT':
        return
    backbone = model.backbone
    image, patch = (_pair(_value(MODELS, backbone, key)) for key in ('img_size', 'patch_size'))
    tokenizer = _geometry(model.target_generator)
    if tokenizer:
        check_vocab(_value(MODELS, model.head, 'vocab_size'), tokenizer['vocab_size'])
    if not patch or not cfg.get('train_dataloader'):
        return
    patches, enough = _divide(image, patch) if image else None, None
    for step in _steps(cfg.train_dataloader.dataset):
        kind = _class(TRANSFORMS, step)
        if hasattr(kind, 'crop_of'):
            step = step | kind.crop_of(step['cache'])
        enough = _value(TRANSFORMS, step, 'enough_pixels') or enough
        view = _pair(_value(TRANSFORMS, step, 'second_size'))
        student = _pair(_value(TRANSFORMS, step, 'size')) if view else None
        if student:
            _check_student(student, patch, type_name(step))
            if enough:
                _check_crops(enough, max(*student, *view), step)
            patches = _divide(student, patch)
        if view and tokenizer and patches:
            check_tokens(view, tokenizer['stride'], patches, f' in {type_name(step)}')
        if patches:
            _check_mask(_pair(_value(TRANSFORMS, step, 'grid_size')), patches, type_name(step))


def _check_student(view: Grid, patch: Grid, transform: str) -> None:
    fitting = tuple(max(round(side / p), 1) * p for side, p in zip(view, patch, strict=True))
    if fitting != tuple(view):
        raise ValueError(
            f'the student view has {size_text(view)} pixels (size of {transform}), not a multiple '
            f'of the patch size {size_text(patch)}: set size={size_argument(fitting)} in '
            f'{transform}'
        )


def _check_crops(enough: int, longest: int, step: dict) -> None:
    """Raise ValueError if crops of `enough` pixels can be smaller than the views' longest side."""
    scale, ratio = (_value(TRANSFORMS, step, key) for key in ('scale', 'ratio'))
    if not scale or not ratio:  # not one of our transforms
        return
    needed = math.ceil(longest**2 / (scale[0] * min(ratio[0], 1 / ratio[1])))
    if enough < needed:
        raise ValueError(
            f'enough_pixels={enough} leaves crops of {scale[0]:g} of the area smaller than the '
            f'{longest} pixels of a view in {type_name(step)}: set enough_pixels={needed} or more, '
            'or None, where images are loaded'
        )


def _check_mask(grid: Grid | None, patches: Grid, transform: str) -> None:
    if grid and grid != patches:
        raise ValueError(
            f'the mask has {size_text(grid)} patches, the student view {size_text(patches)} (its '
            f'size / patch_size): set grid_size={size_argument(patches)} in {transform}'
        )


def _geometry(config: Any) -> dict[str, int] | None:
    """Return vocab_size and stride of a tokenizer's config; None if its class lacks `geometry`."""
    kind = _class(MODELS, config)
    if not hasattr(kind, 'geometry'):
        return None
    return kind.geometry(**{key: value for key, value in config.items() if key != 'type'})


def _steps(node: Any) -> Iterator[dict]:
    """Yield all transforms of a data set, including nested ones and those of wrapped data sets."""
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


def type_name(config: dict) -> str:
    """Return the class name of a node, without its scope."""
    kind = config.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def _value(registry: Registry, config: dict, key: str) -> Any:
    """Return an argument of a component: the config's, else the class's default, else None."""
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
