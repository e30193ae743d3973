"""A run resumed at any iteration ends bit-identical to an uninterrupted one."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mcbeit_mm.datasets.seeded_data import base_seed
from mcbeit_mm.errors import SetupError


class Photos(Dataset):
    """Samples that depend on each generator, as random crops do."""

    def __len__(self):
        return 13

    def __getitem__(self, index):
        drawn = [np.random.random(), random.random()] + torch.rand(2).tolist()
        return dict(inputs=torch.tensor([float(index), *drawn]), data_samples=index)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(5, 3), []

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.stack(list(inputs))
        if mode != 'loss':
            return [dict()]
        self.seen.append(inputs.clone())
        noise = torch.rand(()) + np.random.random() + random.random()  # drop path, mixup
        out = nn.functional.dropout(self.layer(inputs), 0.5)
        return dict(loss=(out - noise).square().mean())


class Validations(Hook):
    """Records when validations begin, and draws numbers, as any hook may."""

    def __init__(self, times):
        self.times = times

    def before_val(self, runner):
        self.times.append(runner.iter)
        torch.rand(7), np.random.random(7), random.random()


def run(folder, loop, resume=None, workers=0, sampler='DefaultSampler', seed=3, upto=None, **cfg):
    """Train; return the runner, and the iterations at which it validated."""
    times: list[int] = []
    by_epoch = 'Epoch' in loop
    length = dict(max_epochs=3) if by_epoch else dict(max_iters=11)
    torch.manual_seed(0)
    runner = Runner(
        model=Model(),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=3,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
            sampler=dict(type=sampler, shuffle=True),
            dataset=Photos(),
        ),
        train_cfg=dict(type=loop, val_interval=2 if by_epoch else 4, **length),
        val_dataloader=dict(batch_size=2, sampler=dict(type='DefaultSampler'), dataset=Photos()),
        val_cfg=dict(),
        val_evaluator=[],
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1), clip_grad=dict(max_norm=1.0)),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=20, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False),
            logger=dict(type='LoggerHook', interval=2),
        ),
        custom_hooks=[Validations(times)],
        load_from=str(resume) if resume else None,
        resume=bool(resume),
        randomness=dict(seed=seed, diff_rank_seed=True),
        experiment_name=str(folder).replace('/', '_'),
        log_level='ERROR',
        **cfg,
    )
    runner.train()
    if iterator := runner.train_dataloader._iterator:  # persistent workers, for each of which
        iterator._shutdown_workers()  # the garbage collector would wait 5 s
    return runner, times


def state(runner: Runner) -> dict:
    hub = MessageHub.get_instance(runner.experiment_name).log_scalars
    curves = {
        name: np.stack(buffer.data)
        for name, buffer in hub.items()
        if name.startswith('train/') and 'time' not in name
    }
    return dict(
        weights=runner.model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
        schedules=[str(scheduler.state_dict()) for scheduler in runner.param_schedulers],
        curves=curves,
    )


def assert_same(ours, theirs) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, torch.Tensor | np.ndarray):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    else:
        assert ours == theirs


LOOPS = [
    ('ResumableEpochLoop', 'DefaultSampler'),
    ('ResumableIterLoop', 'DefaultSampler'),
    ('ResumableIterLoop', 'InfiniteSampler'),
]


@pytest.mark.parametrize('loop, sampler', LOOPS)
@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_at_any_iteration(tmp_path, loop, sampler, workers, monkeypatch):
    fake = SimpleNamespace(sleep=lambda seconds: None)  # MMEngine waits between epochs
    monkeypatch.setattr('mmengine.runner.loops.time', fake)
    whole, times = run(tmp_path / 'whole', loop, workers=workers, sampler=sampler)
    last = whole.max_iters
    for step in (1, 4, 8, last) if workers else range(1, last + 1):
        checkpoint = tmp_path / f'whole/iter_{step}.pth'
        rest, again = run(
            tmp_path / f'from{step}', loop, checkpoint, workers=workers, sampler=sampler
        )
        assert_same(state(rest), state(whole))
        assert again == [time for time in times if time >= step]
        if not workers and step < last:
            assert len(rest.model.seen) == last - step  # nothing is trained twice
            assert_same(rest.model.seen, whole.model.seen[step:])


def test_seed_of_the_checkpoint_is_used_if_the_config_has_none(tmp_path):
    whole, _ = run(tmp_path / 'whole', 'ResumableEpochLoop', seed=None)
    rest, _ = run(tmp_path / 'rest', 'ResumableEpochLoop', tmp_path / 'whole/iter_6.pth', seed=None)
    assert base_seed(rest) == base_seed(whole)
    assert_same(state(rest), state(whole))


def test_a_second_run_is_equal_and_another_seed_is_not(tmp_path):
    one, _ = run(tmp_path / 'one', 'ResumableEpochLoop')
    two, _ = run(tmp_path / 'two', 'ResumableEpochLoop')
    assert_same(state(one), state(two))
    other, _ = run(tmp_path / 'other', 'ResumableEpochLoop', seed=4)
    assert not torch.equal(other.model.layer.weight, one.model.layer.weight)


def test_each_step_has_its_own_numbers(tmp_path):
    whole, _ = run(tmp_path / 'whole', 'ResumableEpochLoop')
    numbers = torch.cat(whole.model.seen)[:, 1:]
    assert len(numbers.flatten().unique()) == numbers.numel()


def test_checkpoint_of_another_epoch_length(tmp_path):
    run(tmp_path / 'whole', 'ResumableEpochLoop')
    path = tmp_path / 'whole/iter_6.pth'
    checkpoint = torch.load(path, weights_only=False)  # of this test
    checkpoint['meta'].update(epoch=2, iter=3)
    torch.save(checkpoint, path)
    with pytest.raises(SetupError, match='epoch 2, iteration 3.* epochs of 4 iterations'):
        run(tmp_path / 'rest', 'ResumableEpochLoop', path)


def test_a_ready_loader_is_refused(tmp_path):
    from torch.utils.data import DataLoader

    from mcbeit_mm.engine.loops import ResumableEpochLoop

    with pytest.raises(ValueError, match='config of a data loader'):
        ResumableEpochLoop(None, DataLoader(Photos()), max_epochs=1)
