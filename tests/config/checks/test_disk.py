"""Checkpoints that do not fit on the disk are found before the first step."""

from collections import namedtuple

import pytest
import torch
from config_files import load
from mmengine.config import Config
from mmengine.registry import MODELS

from mcbeit_mm.config.checks import disk

PARAMETERS = 10_000
CHECKPOINT = 4 * 3 * PARAMETERS  # weights and two moments, fp32


@pytest.fixture
def cfg(tmp_path):
    return Config(
        dict(
            work_dir=str(tmp_path / 'work/run'),
            default_hooks=dict(checkpoint=dict(interval=5, max_keep_ckpts=3)),
            optim_wrapper=dict(optimizer=dict(type='AdamW')),
            train_cfg=dict(max_epochs=100),
        )
    )


@pytest.fixture
def free(monkeypatch):
    """Set the free bytes of the disk."""

    def set_free(size):
        usage = namedtuple('usage', 'total used free')(0, 0, size)
        monkeypatch.setattr(disk.shutil, 'disk_usage', lambda path: usage)

    return set_free


@pytest.mark.parametrize(
    'changes, number',
    [
        (dict(), 4),  # one is written before the oldest is deleted
        (dict(max_keep_ckpts=-1), 21),
        (dict(max_keep_ckpts=50), 21),
        (dict(max_keep_ckpts=-1, interval=30), 5),  # and at the end
        (dict(interval=-1), 2),
        (dict(by_epoch=False), 4),  # of training in epochs
        (dict(save_best='auto'), 5),
        (dict(save_best=['a', 'b']), 6),
    ],
)
def test_number_of_checkpoints(cfg, changes, number):
    cfg.default_hooks.checkpoint.update(changes)
    assert disk.planned_checkpoints(cfg) == number


def test_size_of_a_checkpoint_against_torch(cfg, tmp_path):
    """A saved model with AdamW's state is as large as estimated, but for names and headers."""
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 300)).sum().backward()
    optimizer.step()
    torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict()), tmp_path / 'x.pth')
    expected = disk.checkpoint_size(cfg, *disk.count(model))
    assert (tmp_path / 'x.pth').stat().st_size == pytest.approx(expected, rel=0.01)


def test_what_is_not_trained_has_no_moments(cfg):
    assert disk.checkpoint_size(cfg, 100, 10) == 4 * (100 + 2 * 10)
    cfg.optim_wrapper.optimizer.type = 'SGD'
    assert disk.checkpoint_size(cfg, 100, 10) == 4 * (100 + 10)
    cfg.default_hooks.checkpoint.save_optimizer = False
    assert disk.checkpoint_size(cfg, 100, 10) == 4 * 100


def test_too_little_space_is_refused_and_scarce_space_gives_a_warning(cfg, free, capsys):
    free(4 * CHECKPOINT - 1)
    with pytest.raises(ValueError, match='4 checkpoints of .*max_keep_ckpts or --work-dir'):
        disk.check_disk(cfg, PARAMETERS, PARAMETERS)
    free(4 * CHECKPOINT)
    disk.check_disk(cfg, PARAMETERS, PARAMETERS)
    assert 'WARNING: 4 checkpoints' in capsys.readouterr().err
    free(8 * CHECKPOINT)
    disk.check_disk(cfg, PARAMETERS, PARAMETERS)
    assert capsys.readouterr().err == ''


def test_replaced_checkpoints_count_as_free_space(cfg, free, tmp_path):
    free(2 * CHECKPOINT)
    with pytest.raises(ValueError):
        disk.check_disk(cfg, PARAMETERS, PARAMETERS)
    (tmp_path / 'work/run').mkdir(parents=True)
    for epoch in (5, 10):
        (tmp_path / f'work/run/epoch_{epoch}.pth').write_bytes(bytes(CHECKPOINT))
    disk.check_disk(cfg, PARAMETERS, PARAMETERS)


def test_the_disk_of_a_missing_folder(cfg, tmp_path):
    assert disk.free_space(cfg.work_dir)[1] == tmp_path


@pytest.mark.parametrize(
    'name',
    ['demo/mcbeit_vit-micro-p16_demo.py', 'tokenizer/gumbel-vqgan_f8-512_1xb16-4k_photos-64px.py'],
)
def test_parameters_are_counted_without_building_them(name):
    cfg = load(name)
    counted = disk.count_parameters(cfg)
    part = cfg.model.get('backbone') or dict(cfg.model, data_preprocessor=None)
    model = MODELS.build(part)
    assert counted == disk.count(model)
    assert counted[0] == sum(p.numel() for p in model.parameters()) > 500_000


@MODELS.register_module(force=True)
class ComputesWhileBuilt(torch.nn.Linear):
    def __init__(self):
        super().__init__(int(torch.ones(3).sum().item()), 2)


def test_a_model_that_the_meta_device_cannot_build(cfg):
    cfg.model = dict(backbone=dict(type='ComputesWhileBuilt'))
    assert disk.count_parameters(cfg) == (8, 8)
