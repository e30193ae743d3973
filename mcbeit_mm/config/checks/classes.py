"""Compares the classes of a classifier with those of its data, before anything is built."""

from pathlib import Path

from mmengine import fileio
from mmengine.config import Config, ConfigDict

from ...datasets.checks.imagenet import read_list


def check_classes(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise ValueError if the labels of these data loaders do not fit each other or the model.

    Class folders are labelled by their sorted names, so one that is missing in val would shift all
    after it. Lists of "path label" need labels below the model's number of classes. Other data
    passes.
    """
    datasets = {name: innermost_dataset(cfg[name].dataset) for name in loaders if cfg.get(name)}
    labelled = {name: data for name, data in datasets.items() if _has_labels(data)}
    head = (cfg.model.get('head') or {}).get('num_classes')
    if not labelled or head is None:
        return
    mixing = (cfg.model.get('data_preprocessor') or {}).get('num_classes')
    if mixing not in (None, head):
        raise ValueError(
            f'model.head.num_classes is {head}, model.data_preprocessor.num_classes {mixing}: '
            'give both the same value'
        )
    folders = {name: _class_folders(d) for name, d in labelled.items() if not d.get('ann_file')}
    sets = [set(names) for names in folders.values()]
    if differing := set().union(*sets) - set.intersection(*sets or [set()]):
        raise ValueError(
            f'{" and ".join(folders)} must have the same class folders, only one of them has '
            f'{", ".join(sorted(differing)[:5])}'
        )
    for name, dataset in labelled.items():
        if name in folders:
            _check_count(name, len(folders[name]), head, len(folders[name]) != head)
        else:
            labels = read_list(Path(dataset.get('data_root') or '') / dataset.ann_file)
            count = max(label for _, label in labels) + 1
            _check_count(name, count, head, count > head)


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Return the data set inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _check_count(name: str, count: int, expected: int, wrong: bool) -> None:
    if wrong:
        raise ValueError(
            f'{name} has {count} classes, the model {expected}: set MCBEIT_CLASSES={count} for an '
            f'imagefolder config, else --cfg-options model.head.num_classes={count} '
            f'model.data_preprocessor.num_classes={count}'
        )


def _has_labels(dataset: ConfigDict) -> bool:
    return dataset.type == 'CustomDataset' and dataset.get('with_label', True)


def _class_folders(dataset: ConfigDict) -> list[str]:
    prefix = dataset.get('data_prefix') or ''
    root = dataset.get('data_root') or '.'
    folder = fileio.join_path(root, prefix if isinstance(prefix, str) else prefix['img_path'])
    return sorted(fileio.list_dir_or_file(folder, list_file=False))
