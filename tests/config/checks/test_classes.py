"""Class counts and folder names that do not fit are found before training."""

import pytest
from conftest import ROOT
from mmengine.config import Config

from mcbeit_mm.config.checks.classes import check_classes

CONFIG = 'mcbeit_vit-small-p16_1xb64-bf16-coslr-50e_imagefolder.py'
LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A classifier of three classes and a folder with three, in train and val."""
    for part in ('train', 'val'):
        for name in ('ash', 'birch', 'cedar'):
            (tmp_path / part / name).mkdir(parents=True)
    monkeypatch.setenv('MCBEIT_CLASSES', '3')
    monkeypatch.setenv('MCBEIT_DATA', str(tmp_path))
    return Config.fromfile(ROOT / 'configs/classification' / CONFIG)


def test_fitting_classes_pass(cfg):
    check_classes(cfg, LOADERS)


def test_wrong_number_says_what_to_set(cfg, tmp_path):
    for part in ('train', 'val'):
        (tmp_path / part / 'dogwood').mkdir()
    with pytest.raises(ValueError, match='has 4 classes, the model 3: set MCBEIT_CLASSES=4'):
        check_classes(cfg, LOADERS)


def test_other_folders_in_val_are_named(cfg, tmp_path):
    (tmp_path / 'val/birch').rename(tmp_path / 'val/elm')
    with pytest.raises(ValueError, match='same class folders, only one of them has birch, elm'):
        check_classes(cfg, LOADERS)
    (tmp_path / 'val/elm').rmdir()
    with pytest.raises(ValueError, match='only one of them has birch'):
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


def test_unlabelled_data_passes(cfg, tmp_path):
    (tmp_path / 'train/dogwood').mkdir()
    cfg.train_dataloader.dataset.with_label = False
    check_classes(cfg, ('train_dataloader',))
