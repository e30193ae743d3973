"""Schedules that end elsewhere than training are refused, with both numbers."""

import pytest
from config_files import CONFIGS, load
from mmengine.config import Config

from mcbeit_mm.config.checks.schedules import check_schedules

EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=30)
ITERS = dict(type='IterBasedTrainLoop', max_iters=500)


def config(train_cfg, *schedules, **more):
    return Config(dict(model=dict(), train_cfg=train_cfg, param_scheduler=list(schedules), **more))


def linear(**kwargs):
    return dict(type='LinearLR', start_factor=0.1, **kwargs)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_pass(path):
    for scale in ('in1k', 'photos') if path.parent.name == 'ablations' else ('in1k',):
        check_schedules(load(path, MCBEIT_ABLATION=scale))


@pytest.mark.parametrize(
    'train_cfg, schedules',
    [
        (EPOCHS, [linear(end=5), dict(type='CosineAnnealingLR', begin=5, end=30, T_max=25)]),
        (EPOCHS, [linear(end=500, by_epoch=False), dict(type='MultiStepLR', end=30)]),
        (EPOCHS, [dict(type='CosineAnnealingLR', begin=5)]),  # Runner sets its end
        (EPOCHS, [linear(end=5), dict(type='ConstantLR', begin=5, end=2**31)]),
        (ITERS, [dict(type='WarmupCosineLR', warmup=50, end=500, by_epoch=False)]),
        (ITERS, [linear(end=501, by_epoch=False)]),
        (ITERS, []),
        ({}, [linear(end=5)]),
    ],
)
def test_fitting_lengths_pass(train_cfg, schedules):
    check_schedules(config(train_cfg, *schedules))


@pytest.mark.parametrize(
    'train_cfg, schedules, message',
    [
        (EPOCHS, [dict(type='WarmupCosineLR', warmup=5, end=100)],
         r'param_scheduler\.0 ends at 100, training at train_cfg\.max_epochs=30'),
        (EPOCHS, [linear(end=5), dict(type='CosineAnnealingLR', begin=5, end=20)],
         r'param_scheduler\.1 ends at 20'),
        (EPOCHS, [linear(end=40, convert_to_iter_based=True)], 'ends at 40'),
        (EPOCHS, [dict(type='CosineAnnealingLR', T_max=50)], 'ends at 50'),
        (ITERS, [linear(end=100, by_epoch=False)], r'ends at 100, .*max_iters=500'),
        (ITERS, [linear(end=502, by_epoch=False)], 'ends at 502'),
        (ITERS, [linear(end=500)], 'counts epochs, .* set by_epoch=False'),
    ],
)  # fmt: skip
def test_other_lengths_are_refused(train_cfg, schedules, message):
    with pytest.raises(ValueError, match=message):
        check_schedules(config(train_cfg, *schedules))


def test_schedules_of_several_optimizers():
    cfg = config(EPOCHS)
    cfg.param_scheduler = dict(encoder=[linear(end=30)], decoder=linear(end=31))
    with pytest.raises(ValueError, match=r'param_scheduler\.decoder ends at 31'):
        check_schedules(cfg)


def test_warm_up_of_tau_must_fit_into_training():
    hook = dict(type='TauWarmupHook', tau_start=1.0, warmup_epochs=30)
    check_schedules(config(EPOCHS, custom_hooks=[hook]))
    with pytest.raises(ValueError, match='TauWarmupHook: warmup_epochs=31 .*max_epochs=30'):
        check_schedules(config(EPOCHS, custom_hooks=[dict(hook, warmup_epochs=31)]))


def test_the_tokenizers_own_schedules():
    cfg = config(ITERS)
    cfg.model.total_iters = 500
    check_schedules(cfg)
    cfg.model.total_iters = 4000
    with pytest.raises(ValueError, match='model.total_iters=4000.*train_cfg.max_iters=500'):
        check_schedules(cfg)
