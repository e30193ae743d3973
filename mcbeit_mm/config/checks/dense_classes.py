"""Compares the classes of a segmentor or detector with those of its data."""

from collections.abc import Iterator
from pathlib import Path

from mmengine import list_from_file
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from .classes import innermost_dataset

HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'mask_head', 'roi_head')


def check_dense_classes(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise ValueError if a head of mmseg's or mmdet's predicts other classes than the data has.

    The data's classes are those of its metainfo, else its class's METAINFO (without the zero label
    that reduce_zero_label takes away); data that names none passes, and heads that read texts.
    """
    if 'language_model' in cfg.model:
        return
    heads = [head for name in HEADS for head in _heads(cfg.model.get(name), f'model.{name}')]
    for loader in loaders:
        classes = _classes(cfg, innermost_dataset(cfg[loader].dataset)) if cfg.get(loader) else None
        for place, number in heads if classes else []:
            if number != len(classes):
                raise ValueError(
                    f'{place}.num_classes={number}, but the data of {loader} has {len(classes)} '
                    f'classes ({", ".join(classes[:3])}, ...): set {place}.num_classes='
                    f'{len(classes)}, or metainfo.classes of the data'
                )


def _heads(node: ConfigDict | list | None, place: str) -> Iterator[tuple[str, int]]:
    """Heads with num_classes: single, in lists as in cascades, or within a roi_head."""
    if isinstance(node, list | tuple):
        for index, head in enumerate(node):
            yield from _heads(head, f'{place}.{index}')
    elif node:
        if 'num_classes' in node:
            yield place, node.num_classes
        for name in HEADS:
            yield from _heads(node.get(name), f'{place}.{name}')


def _classes(cfg: Config, dataset: ConfigDict) -> list[str] | None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None and 'type' in dataset:
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
        known = getattr(kind, 'METAINFO', {})
        classes = known.get('thing_classes', known.get('classes'))  # panoptic: boxes are of things
    if isinstance(classes, str | Path):
        classes = list_from_file(classes)
    return list(classes) if classes else None
