"""Planned runs, what they lack, and existing runs with different settings."""

from dataclasses import replace

import pytest
from mmengine.config import Config
from small_ablation import finish, planned, write_configs

from mcbeit_mm.ablation import plan


@pytest.fixture
def folder(tmp_path):
    return write_configs(tmp_path)


def test_runs_are_ordered_by_seed_and_begin_with_the_baseline(folder):
    runs = planned(folder, seeds=(5, 2, 5))
    order = [(run.name, run.seed) for run in runs]
    names = ['baseline', 'omega-0', 'omega-1']
    assert order == [(name, seed) for seed in (5, 2) for name in names]
    assert runs[0].folder == folder / 'out/baseline/seed5'
    assert runs[4].options == ('train_dataloader.dataset.data_prefix=train', 'randomness.seed=2')
    assert runs[4].cfg.randomness.seed == 2 and runs[1].cfg.randomness.seed == 5
    assert runs[4].cfg.train_dataloader.dataset.data_prefix == 'train'


def test_options_and_precision(folder):
    prefix = 'train_dataloader.dataset.data_prefix=part'
    (run,) = planned(folder, prefix, seeds=[3], pattern='baseline.py', precision='bf16')
    assert run.options == (prefix, 'randomness.seed=3')
    assert run.cfg.optim_wrapper.type == 'Bf16OptimWrapper'


def test_configs_are_found_once_and_names_are_unique(folder):
    both = [str(folder / 'omega-1.py'), str(folder / 'omega-*.py')]
    assert [path.stem for path in plan.find_configs(both)] == ['omega-1', 'omega-0']
    for absent in ('tau-*.py', 'tau.py'):
        with pytest.raises(FileNotFoundError, match='no config matches'):
            plan.find_configs([str(folder / absent)])
    (folder / 'other').mkdir()
    (folder / 'other/omega-1.py').write_text('')
    with pytest.raises(ValueError, match='called omega-1'):
        plan.find_configs([str(folder / '*.py'), str(folder / 'other/*.py')])


def test_only_missing_steps_are_planned(folder):
    run, *_ = planned(folder)
    assert run.missing == ['train', 'evaluate']
    finish(run, epoch=2)  # of 3; its evaluation does not count
    assert run.missing == ['train', 'evaluate']
    finish(run)
    assert run.missing == []
    (run.folder / 'features.json').write_text('{"models": ')  # killed while writing
    assert run.missing == ['evaluate']
    iterations = Config(dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=7)))
    (run.folder / 'last_checkpoint').write_text('iter_7.pth')
    assert replace(run, cfg=iterations).is_trained


def test_finetuning_is_another_run(folder):
    (folder / 'transfer.py').write_text(
        "train_dataloader = dict(dataset=dict(type='CustomDataset'))\n"
        "optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))\n"
        "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)\n"
    )
    transfer = dict(finetune=str(folder / 'transfer.py'))
    run, *_ = planned(folder, seeds=[4], **transfer)
    assert run.finetune.folder == run.folder / 'finetune'
    assert run.finetune.options == ('randomness.seed=4',) and run.finetune.cfg.randomness.seed == 4
    assert run.missing == ['train', 'evaluate', 'finetune']
    finish(run)
    assert run.missing == ['finetune']
    run.finetune.folder.mkdir()
    (run.finetune.folder / 'last_checkpoint').write_text('epoch_2.pth')
    assert run.missing == []
    run.finetune.cfg.dump(run.finetune.folder / 'transfer.py')
    plan.check_agreement(planned(folder, seeds=[4], **transfer))
    option = 'train_cfg.max_epochs=3'
    with pytest.raises(ValueError, match=r'seed4/finetune has .*max_epochs: 2 -> 3'):
        plan.check_agreement(planned(folder, seeds=[4], finetune_options=[option], **transfer))


def test_a_run_with_different_settings_is_refused(folder):
    for run in planned(folder):
        finish(run)
    plan.check_agreement(planned(folder))
    with pytest.raises(ValueError, match=r'baseline/seed0 has .*optimizer.lr: 0.001 -> 0.1\. Move'):
        plan.check_agreement(planned(folder, 'optim_wrapper.optimizer.lr=0.1'))
    with pytest.raises(ValueError, match="optim_wrapper.type: 'OptimWrapper' -> 'Bf16Opt"):
        plan.check_agreement(planned(folder, precision='bf16'))


@pytest.mark.parametrize(
    'option', ['train_dataloader.num_workers=0', 'model.head.vocab_size=512', 'work_dir=y']
)
def test_settings_without_influence_may_differ(folder, option):
    finish(planned(folder)[0])
    plan.check_agreement(planned(folder, option))


def test_moved_data_is_accepted_but_not_other_data(folder):
    finish(planned(folder)[0])
    moved, key = folder / 'moved', 'train_dataloader.dataset.data_root'
    plan.check_agreement(planned(folder, f'{key}={moved}'))  # missing: cannot be compared
    moved.mkdir()
    with pytest.raises(ValueError, match='data_root'):
        plan.check_agreement(planned(folder, f'{key}={moved}'))
    (folder / 'data').rmdir()
    plan.check_agreement(planned(folder, f'{key}={moved}'))


def test_tokenizers_are_compared_by_path_and_pin(folder):
    finish(planned(folder)[0])
    key = 'model.target_generator.checkpoint'
    other = folder / 'other'
    other.mkdir()
    with pytest.raises(ValueError, match=key):
        plan.check_agreement(planned(folder, f'{key}={other}'))
    (folder / 'tokenizer').rename(folder / 'moved')
    plan.check_agreement(planned(folder, f'{key}={folder}/moved'))
    pinned = planned(folder, f'{key}={folder}/moved#sha256={"a" * 64}')[0]
    finish(pinned)
    with pytest.raises(ValueError, match=key):
        plan.check_agreement(planned(folder, f'{key}={folder}/moved#sha256={"b" * 64}'))


def test_changes_are_summarized(folder):
    baseline, _, omega = planned(folder, seeds=[0])
    assert plan.changes_from(baseline, omega) == ['head.omega 0.2 → 1.0']
    (other,) = planned(folder, 'model.head.vocab_size=9', seeds=[7], pattern='baseline.py')
    assert plan.changes_from(baseline, other) == ['head.vocab_size None → 9']
