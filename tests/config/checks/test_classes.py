"""Models and data with different classes are refused before training."""

import pytest
from config_files import load
from mmengine.config import Config

from mcbeit_mm.config.checks.classes import check_classes

CONFIG = 'mcbeit_vit-small-p16_1xb64-bf16-coslr-50e_imagefolder.py'
LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def cfg(tmp_path):
    """A classifier of three classes and a folder with three, in train and val."""
    for part in ('train', 'val'):
        for name in ('ash', 'birch', 'cedar'):
            (tmp_path / part / name).mkdir(parents=True)
    return load(f'classification/{CONFIG}', MCBEIT_CLASSES='3', MCBEIT_DATA=str(tmp_path))


def test_fitting_classes_pass(cfg):
    check_classes(cfg, LOADERS)


def test_wrong_number_says_what_to_set(cfg, tmp_path):
    for part in ('train', 'val'):
        (tmp_path / part / 'dogwood').mkdir()
    with pytest.raises(ValueError, match='has 4 classes, the model 3: set MCBEIT_CLASSES=4'):
        check_classes(cfg, LOADERS)


def test_other_folders_in_val_are_named(cfg, tmp_path):
    (tmp_path / 'val/birch').rename(tmp_path / 'val/elm')
    with pytest.raises(ValueError, match='same class folders, only one has birch, elm'):
        check_classes(cfg, LOADERS)
    (tmp_path / 'val/elm').rmdir()
    with pytest.raises(ValueError, match='only one has birch'):
        check_classes(cfg, LOADERS)


def test_head_and_mixing_must_agree(cfg):
    cfg.model.head.num_classes = 5
    with pytest.raises(ValueError, match=r'head.num_classes is 5, .* 3'):
        check_classes(cfg, LOADERS)


def test_labels_of_lists_lie_below_the_number_of_classes(cfg, tmp_path):
    (tmp_path / 'list.txt').write_text('ash/1.jpg 0\ncedar/2.jpg 2\n')
    for name in LOADERS:
        cfg[name].dataset.ann_file = 'list.txt'
    check_classes(cfg, LOADERS)
    (tmp_path / 'list.txt').write_text('ash/1.jpg 3\n')
    with pytest.raises(ValueError, match='train_dataloader has 4 classes, the model 3'):
        check_classes(cfg, LOADERS)


def test_unlabeled_data_passes(cfg, tmp_path):
    (tmp_path / 'train/dogwood').mkdir()
    cfg.train_dataloader.dataset.with_label = False
    check_classes(cfg, ('train_dataloader',))


# --- segmentation and detection ------------------------------------------------------------------


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


def test_class_names_of_the_config():
    classes = dict(metainfo=dict(classes=['a', 'b', 'c']))
    check_classes(segmentor(3, **classes), LOADERS)
    check_classes(detector(3, 3, **classes), LOADERS)
    with pytest.raises(ValueError, match=r'model\.decode_head\.0\.num_classes=4, .* has 3 classes'):
        check_classes(segmentor(4, **classes), LOADERS)
    with pytest.raises(ValueError, match=r'model\.auxiliary_head\.num_classes=150'):
        check_classes(segmentor(3, 150, **classes), LOADERS)
    with pytest.raises(ValueError, match=r'model\.roi_head\.mask_head\.num_classes=80'):
        check_classes(detector(3, 80, **classes), LOADERS)


def test_class_names_of_a_file(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('a\nb\n')
    check_classes(segmentor(2, 2, metainfo=dict(classes=str(file))), LOADERS)
    with pytest.raises(ValueError, match='has 2 classes'):
        check_classes(segmentor(3, metainfo=dict(classes=str(file))), LOADERS)


def test_class_names_of_the_data_set():
    check_classes(detector(80, 80), LOADERS)
    with pytest.raises(ValueError, match=r'bbox_head\.0\.num_classes=3, .* 80 classes \(person'):
        check_classes(detector(3, 3), LOADERS)
    cfg = segmentor(150, 150)
    cfg.train_dataloader.dataset.dataset.type = 'ADE20KDataset'  # reduce_zero_label: 150 of 151
    check_classes(cfg, LOADERS)


def test_data_without_class_names_passes():
    check_classes(segmentor(7, 8), LOADERS)
