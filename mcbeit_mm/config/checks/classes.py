"""Compare the classes of a model with those of its data before anything is built."""

from collections.abc import Iterator
from pathlib import Path

from mmengine import fileio, list_from_file
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from ...datasets.checks.imagenet import read_list

HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'mask_head', 'roi_head')


def check_classes(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise ValueError if model and data of these loaders differ in the number of classes."""
    datasets = {name: innermost_dataset(cfg[name].dataset) for name in loaders if cfg.get(name)}
    if cfg.get('default_scope') == 'mmpretrain':
        _check_labels(cfg, datasets)
    elif 'language_model' not in cfg.model:  # its head classifies by text
        _check_heads(cfg, datasets)


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Return the config of the data set inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _check_labels(cfg: Config, datasets: dict[str, ConfigDict]) -> None:
    """Compare class folders and lists of "path label" with the classifier; other data passes.

    Folders are labeled by their sorted names: one that val lacks would shift all after it.
    """
    labeled = {name: data for name, data in datasets.items() if _has_labels(data)}
    head = (cfg.model.get('head') or {}).get('num_classes')
    if not labeled or head is None:
        return
    mixing = (cfg.model.get('data_preprocessor') or {}).get('num_classes')
    if mixing not in (None, head):
        raise ValueError(
            f'model.head.num_classes is {head}, model.data_preprocessor.num_classes {mixing}: '
            'set both to the same value'
        )
    folders = {name: _class_folders(d) for name, d in labeled.items() if not d.get('ann_file')}
    sets = [set(names) for names in folders.values()]
    if differing := set().union(*sets) - set.intersection(*sets or [set()]):
        raise ValueError(
            f'{" and ".join(folders)} must have the same class folders, only one has '
            f'{", ".join(sorted(differing)[:5])}'
        )
    for name, dataset in labeled.items():
        if name in folders:
            count = len(folders[name])
        else:  # a list need not have images of the last classes
            labels = read_list(Path(dataset.get('data_root') or '') / dataset.ann_file)
            count = max(head, max(label for _, label in labels) + 1)
        if count != head:
            raise ValueError(
                f'{name} has {count} classes, the model {head}: set MCBEIT_CLASSES={count} for an '
                'imagefolder config, otherwise --cfg-options model.head.num_classes='
                f'{count} model.data_preprocessor.num_classes={count}'
            )


def _has_labels(dataset: ConfigDict) -> bool:
    return dataset.type == 'CustomDataset' and dataset.get('with_label', True)


def _class_folders(dataset: ConfigDict) -> list[str]:
    prefix = dataset.get('data_prefix') or ''
    root = dataset.get('data_root') or '.'
    folder = fileio.join_path(root, prefix if isinstance(prefix, str) else prefix['img_path'])
    return sorted(fileio.list_dir_or_file(folder, list_file=False))


def _check_heads(cfg: Config, datasets: dict[str, ConfigDict]) -> None:
    """Compare every head of a segmentor or detector with data that names its classes."""
    heads = [head for name in HEADS for head in _heads(cfg.model.get(name), f'model.{name}')]
    for loader, dataset in datasets.items():
        classes = _class_names(cfg, dataset)
        for place, number in heads if classes else []:
            if number != len(classes):
                raise ValueError(
                    f'{place}.num_classes={number}, but the data of {loader} has {len(classes)} '
                    f'classes ({", ".join(classes[:3])}, ...): set {place}.num_classes='
                    f'{len(classes)}, or metainfo.classes of the data'
                )


def _heads(node: ConfigDict | list | None, place: str) -> Iterator[tuple[str, int]]:
    """Yield heads with num_classes: single, in a cascade's list, or inside a roi_head."""
    if isinstance(node, list | tuple):
        for index, head in enumerate(node):
            yield from _heads(head, f'{place}.{index}')
    elif node:
        if 'num_classes' in node:
            yield place, node.num_classes
        for name in HEADS:
            yield from _heads(node.get(name), f'{place}.{name}')


def _class_names(cfg: Config, dataset: ConfigDict) -> list[str] | None:
    """Return the classes of the config's metainfo, else of the data set's METAINFO, or None."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None and 'type' in dataset:
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
        known = getattr(kind, 'METAINFO', {})
        classes = known.get(
            'thing_classes', known.get('classes')
        )  # panoptic data has boxes of things only
    if isinstance(classes, str | Path):
        classes = list_from_file(classes)
    return list(classes) if classes else None
