"""A learning rate for another batch gives a warning with the factor."""

import pytest
from mmengine.config import Config

from mcbeit_mm.config.checks.batch import check_batch


@pytest.fixture
def cfg():
    return Config(
        dict(
            launcher='pytorch',
            train_dataloader=dict(batch_size=8),
            optim_wrapper=dict(accumulative_counts=2),
            auto_scale_lr=dict(base_batch_size=64),
        )
    )


def test_fitting_batch_is_silent(cfg, monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '4')
    check_batch(cfg)  # 8 x 4 x 2
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    'launcher, variable, factor',
    [('none', 'WORLD_SIZE', 0.25), ('pytorch', 'WORLD_SIZE', 2), ('slurm', 'SLURM_NTASKS', 2)],
)
def test_another_batch_gives_a_warning_with_the_factor(
    cfg, monkeypatch, capsys, launcher, variable, factor
):
    monkeypatch.setenv(variable, '8')
    cfg.launcher = launcher
    check_batch(cfg)
    warning = capsys.readouterr().err
    assert f'--auto-scale-lr to multiply the learning rate by {factor}' in warning
    assert f'takes {64 * factor:g} images' in warning and 'learning rate is for 64' in warning


def test_only_the_first_process_warns(cfg, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    check_batch(cfg)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('scaling', [None, dict(enable=True, base_batch_size=32)])
def test_nothing_to_compare_or_scaled_already(cfg, capsys, scaling):
    cfg.auto_scale_lr = scaling
    check_batch(cfg)
    assert capsys.readouterr().err == ''
