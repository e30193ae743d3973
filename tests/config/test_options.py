"""Overrides: known keys arrive, misspelt ones are refused with a proposal."""

import pytest
from conftest import ROOT

from mcbeit_mm.config.launch import load_config
from mcbeit_mm.config.options import parse_options

CONFIG = ROOT / 'configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'


@pytest.mark.parametrize(
    'option, value',
    [
        ('model.head.omega=0.5', 0.5),
        ('model.backbone.with_cp=True', True),  # not in the config, but an argument of the class
        ('model.backbone.init_cfg.checkpoint=x.pth', 'x.pth'),
        ('param_scheduler.0.end=20', 20),
        ('train_cfg.val_interval=2', 2),
        ('optim_wrapper.accumulative_counts=4', 4),
        ('optim_wrapper.optimizer.fused=True', True),
        ('find_unused_parameters=True', True),
        ('default_hooks.checkpoint.save_best=None', None),
    ],
)
def test_known_options_arrive(option, value):
    node = load_config(str(CONFIG), [option])
    for part in option.split('=')[0].split('.'):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == value


@pytest.mark.parametrize(
    'option, hint',
    [
        ('model.head.omgea=0.5', 'did you mean omega'),
        ('model.bakbone.arch=small', 'did you mean backbone'),
        ('modle.head.omega=1', 'did you mean model'),
        ('param_scheduler.3.end=20', 'has 1 entries'),
        ('optim_wrapper.optimizer.learning_rate=1', 'has no key'),
        ('train_cfg.max_epoch=3', 'did you mean max_epochs'),
        ('work_dirr=x', 'did you mean work_dir'),
        ('model.head.omega.value=1', 'is 0.2 and has no key'),
    ],
)
def test_misspelt_options_are_refused(option, hint):
    with pytest.raises(ValueError, match=hint):
        load_config(str(CONFIG), [option])


def test_option_without_value():
    with pytest.raises(ValueError, match='takes key=value, got model.head.omega'):
        parse_options(['model.head.omega'])


def test_lists_are_parsed():
    assert parse_options(['a=[1,2]', 'b=x', 'c=(3,4)']) == dict(a=[1, 2], b='x', c=(3, 4))


def test_keys_of_the_libraries_own_classes(tmp_path):
    """Classes that live in mmpretrain's, mmseg's or mmdet's registry are looked up there."""
    for scope, dataset, key in [
        ('mmpretrain', 'CustomDataset', 'ann_file'),
        ('mmseg', 'ADE20KDataset', 'img_suffix'),
        ('mmdet', 'CocoDataset', 'metainfo'),
    ]:
        config = tmp_path / f'{scope}.py'
        config.write_text(
            f'default_scope = {scope!r}\ntrain_dataloader = dict(dataset=dict(type={dataset!r}))\n'
        )
        cfg = load_config(str(config), [f'train_dataloader.dataset.{key}=x'])
        assert cfg.train_dataloader.dataset[key] == 'x'
        with pytest.raises(ValueError, match=f'has no key .*did you mean {key}'):
            load_config(str(config), [f'train_dataloader.dataset.{key}s=x'])
