"""Runs with different settings are detected and not resumed."""

import json

import pytest
import torch
from mmengine.config import Config

from mcbeit_mm.engine.experiment import check_same_run, experiment, images_per_iteration, run_facts

SHA = 'a' * 64
RUN = dict(
    model=dict(
        type='MCBEiT',
        backbone=dict(type='MCBEiTViT', init_cfg=dict(type='Pretrained', checkpoint='/old/w.pth')),
        head=dict(omega=0.2, tau=4.0),
        target_generator=dict(type='GumbelVQGANTokenizer', checkpoint='/old/tokenizer'),
    ),
    train_dataloader=dict(
        batch_size=128,
        num_workers=8,
        dataset=dict(type='ImageNet', data_root='/old/data', pipeline=[dict(type='BlockMask')]),
    ),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(lr=1.5e-3, betas=(0.9, 0.98))),
    train_cfg=dict(type='ResumableEpochLoop', max_epochs=800, val_interval=1),
    custom_hooks=[dict(type='TokenizerIdentityHook'), dict(type='ThroughputHook')],
    default_hooks=dict(checkpoint=dict(interval=1)),
    randomness=dict(seed=0),
    work_dir='x',
)


@pytest.fixture
def cfg():
    return Config(RUN)


def changed(cfg, **values):
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in values.items()})
    return cfg


@pytest.fixture
def meta(cfg, tmp_path):
    """Meta of a run on 16 processes, saved and loaded as in training."""
    torch.save(dict(meta=dict(run=run_facts(cfg, 16, 625))), tmp_path / 'c.pth')
    return torch.load(tmp_path / 'c.pth', weights_only=True)['meta']


def test_facts_are_plain_data(cfg):
    cfg.model.head.type = torch.nn.Linear
    cfg.train_dataloader.collate_fn = torch.utils.data.default_collate
    facts = run_facts(cfg, 16, 625)
    assert json.loads(json.dumps(facts)) == facts
    assert facts['world_size'] == 16 and facts['epoch_length'] == 625
    settings = facts['settings']
    assert settings['model']['head']['type'] == 'torch.nn.modules.linear.Linear'
    assert settings['optim_wrapper']['optimizer']['betas'] == [0.9, 0.98]
    assert 'num_workers' not in settings['train_dataloader'] and 'work_dir' not in settings
    assert type(settings['model']) is dict and type(settings['custom_hooks']) is list
    assert images_per_iteration(facts) == 2048


def test_the_same_run_resumes_without_a_message(cfg, meta):
    said = []
    check_same_run(meta, cfg, 16, report=said.append)
    assert said == []


@pytest.mark.parametrize(
    'values',
    [
        dict(train_dataloader__dataset__data_root='/scratch/data'),
        dict(model__target_generator__checkpoint=f'/scratch/tokenizer/last.ckpt#sha256={SHA}'),
        dict(model__backbone__init_cfg=None),
        dict(train_dataloader__num_workers=0, train_dataloader__pin_memory=True),
        dict(train_cfg__val_interval=10, default_hooks__checkpoint__interval=5),
        dict(custom_hooks=[dict(type='KNNHook', data='d'), dict(type='TokenizerIdentityHook')]),
        dict(work_dir='y', log_level='DEBUG'),
    ],
)
def test_what_may_differ(cfg, meta, values, tmp_path):
    check_same_run(meta, changed(cfg, **values), 16, report=pytest.fail)


@pytest.mark.parametrize(
    'values, text',
    [
        (dict(model__head__omega=0.5), 'model.head.omega: 0.2 -> 0.5'),
        (dict(train_cfg__max_epochs=1600), 'train_cfg.max_epochs: 800 -> 1600'),
        (dict(train_dataloader__batch_size=64), 'train_dataloader.batch_size: 128 -> 64'),
        (dict(randomness__seed=1), 'randomness.seed: 0 -> 1'),
        (
            dict(custom_hooks=[dict(type='TokenizerIdentityHook'), dict(type='EMAHook')]),
            "custom_hooks.EMAHook: (absent) -> dict(type='EMAHook')",
        ),
        (
            dict(custom_hooks=[dict(type='ThroughputHook')]),
            "custom_hooks.TokenizerIdentityHook: dict(type='TokenizerIdentityHook') -> (absent)",
        ),
    ],
)
def test_what_may_not(cfg, meta, values, text):
    with pytest.raises(ValueError) as error:
        check_same_run(meta, changed(cfg, **values), 16)
    assert str(error.value) == (
        f'the checkpoint was saved with different settings (saved -> current): {text}. Use another '
        '--work-dir and load_from=FILE to start a new run from its weights, or --allow-changes to '
        'resume with the current settings'
    )


def test_unwatched_tokenizer_paths_are_compared(cfg, tmp_path):
    """Without the hook that hashes tokenizers, two folders that both exist are two tokenizers.

    So are two data folders.
    """
    cfg.custom_hooks = []
    for name in ('old', 'new'):
        (tmp_path / name).mkdir()
    cfg.model.target_generator.checkpoint = str(tmp_path / 'old')
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'old')
    meta = dict(run=run_facts(cfg, 1))
    cfg.model.target_generator.checkpoint = str(tmp_path / 'new')
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'new')
    with pytest.raises(ValueError, match='target_generator.checkpoint.*data_root'):
        check_same_run(meta, cfg, 1)
    (tmp_path / 'old').rmdir()
    check_same_run(meta, cfg, 1, report=pytest.fail)


def test_two_pins_decide(cfg):
    pinned = dict(type='PerceptualLoss', vgg_weights=f'/old/vgg.pth#sha256={SHA}')
    cfg.model.perceptual = dict(pinned)
    meta = dict(run=run_facts(cfg, 1))
    cfg.model.perceptual.vgg_weights = f'/new/vgg.pth#sha256={SHA}'
    check_same_run(meta, cfg, 1, report=pytest.fail)
    cfg.model.perceptual.vgg_weights = f'/old/vgg.pth#sha256={"b" * 64}'
    with pytest.raises(ValueError, match='vgg_weights'):
        check_same_run(meta, cfg, 1)


def test_allowed_changes_are_reported(cfg, meta):
    with pytest.raises(ValueError, match='world_size: 16 -> 8. Use'):
        check_same_run(meta, cfg, 8)
    said = []
    cfg.train_dataloader.batch_size = 256
    check_same_run(meta, cfg, 8, allow=True, report=said.append)
    assert said == [
        'resuming with different settings (saved -> current): world_size: 16 -> 8; '
        'train_dataloader.batch_size: 128 -> 256'
    ]


@pytest.mark.parametrize('meta', [{}, dict(run=None), dict(run=dict(world_size=1))])
def test_older_checkpoints_pass_with_a_warning(cfg, meta):
    said = []
    check_same_run(meta, cfg, 1, report=said.append)
    assert said == [
        'warning: the checkpoint does not record its settings, so they are not compared'
    ]


def test_experiment_leaves_out_loading_and_keeps_the_config(cfg):
    before = cfg.pretty_text
    parts = experiment(cfg)
    assert parts['train_dataloader'].keys() == {'batch_size', 'dataset'}
    assert cfg.pretty_text == before and cfg.train_dataloader.num_workers == 8
