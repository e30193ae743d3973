"""Heads of segmentors and detectors must predict the classes of their data."""

import pytest
from mmengine.config import Config

from mcbeit_mm.config.checks.dense_classes import check_dense_classes

LOADERS = ('train_dataloader', 'val_dataloader')


def config(scope, dataset, **model):
    loader = dict(dataset=dict(type='RepeatDataset', dataset=dataset))
    return Config(dict(default_scope=scope, model=model, train_dataloader=loader))


def segmentor(number, auxiliary=3, **dataset):
    return config(
        'mmseg',
        dict(type='BaseSegDataset', **dataset),
        decode_head=[dict(num_classes=number), dict(num_classes=number)],
        auxiliary_head=dict(num_classes=auxiliary),
    )


def detector(box, mask, **dataset):
    roi_head = dict(bbox_head=[dict(num_classes=box)] * 3, mask_head=dict(num_classes=mask))
    return config('mmdet', dict(type='CocoDataset', **dataset), roi_head=roi_head)


def test_names_in_the_config():
    classes = dict(metainfo=dict(classes=['a', 'b', 'c']))
    check_dense_classes(segmentor(3, **classes), LOADERS)
    check_dense_classes(detector(3, 3, **classes), LOADERS)
    with pytest.raises(ValueError, match=r'model\.decode_head\.0\.num_classes=4, .* has 3 classes'):
        check_dense_classes(segmentor(4, **classes), LOADERS)
    with pytest.raises(ValueError, match=r'model\.auxiliary_head\.num_classes=150'):
        check_dense_classes(segmentor(3, 150, **classes), LOADERS)
    with pytest.raises(ValueError, match=r'model\.roi_head\.mask_head\.num_classes=80'):
        check_dense_classes(detector(3, 80, **classes), LOADERS)


def test_names_in_a_file(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('a\nb\n')
    check_dense_classes(segmentor(2, 2, metainfo=dict(classes=str(file))), LOADERS)
    with pytest.raises(ValueError, match='has 2 classes'):
        check_dense_classes(segmentor(3, metainfo=dict(classes=str(file))), LOADERS)


def test_names_of_the_datas_class():
    check_dense_classes(detector(80, 80), LOADERS)
    with pytest.raises(ValueError, match=r'bbox_head\.0\.num_classes=3, .* 80 classes \(person'):
        check_dense_classes(detector(3, 3), LOADERS)
    cfg = segmentor(150, 150)
    cfg.train_dataloader.dataset.dataset.type = 'ADE20KDataset'  # reduce_zero_label: 150 of 151
    check_dense_classes(cfg, LOADERS)


def test_data_without_names_passes():
    check_dense_classes(segmentor(7, 8), LOADERS)
