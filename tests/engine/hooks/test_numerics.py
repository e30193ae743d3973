"""Steps with non-finite gradients change nothing; loss spikes are reported."""

import json
import logging
import os
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mcbeit_mm.engine.hooks.numerics import NumericsHook, _paths
from mcbeit_mm.errors import SetupError
from mcbeit_mm.optim import Bf16OptimWrapper


class Numbers(Dataset):
    """Sample i; those in `bad` are infinite or NaN."""

    def __init__(self, bad=(), length=64, value=float('nan')):
        self.bad, self.length, self.value = bad, length, value

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        x = torch.full((4,), self.value) if i in self.bad else torch.rand(4)
        return dict(inputs=x, data_samples=SimpleNamespace(img_path=f'{i}.png'))


def collate(samples):
    return dict(
        inputs=torch.stack([sample['inputs'] for sample in samples]),
        data_samples=[sample['data_samples'] for sample in samples],
    )


class Regression(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.layers(inputs).square().mean())


class Mean(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.layer(inputs).mean())


class Snapshots(Hook):
    """Everything that training changes, after every iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.states = []

    def before_train(self, runner):
        self.after_train_iter(runner)

    def after_train_iter(self, runner, *args, **kwargs):
        optimizer = runner.optim_wrapper.optimizer.state_dict()
        buffers = {k: v for k, v in runner.model.state_dict().items() if 'num_batches' not in k}
        self.states.append(deepcopy((buffers, optimizer['state'])))


class ScaledOptimWrapper(OptimWrapper):
    """Uses a GradScaler as AmpOptimWrapper does, on the CPU too."""

    def __init__(self, init_scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()


def run(tmp_path, data, iters=8, hook=(), hooks=(), kind=OptimWrapper, model=Regression, **wrapper):
    """Train on batches of 4 in order; return the runner and the states before and after each."""
    torch.manual_seed(0)
    model = model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    snapshots = Snapshots()
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            dataset=data, batch_size=4, collate_fn=collate, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=kind(optimizer=optimizer, **wrapper),
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=100)),
        custom_hooks=[NumericsHook(**dict(hook)), snapshots, *hooks],
        experiment_name=f'numerics{tmp_path.name}{os.getpid()}{iters}',
        log_level='WARNING',
    )  # fmt: skip
    runner.train()
    return runner, snapshots.states


def events(tmp_path):
    return [json.loads(line) for line in (tmp_path / 'nonfinite.jsonl').read_text().splitlines()]


def same(a, b):
    return all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and all(
        torch.equal(torch.as_tensor(a[1][i][k]), torch.as_tensor(b[1][i][k]))
        for i in a[1].keys() | b[1].keys()
        for k in a[1][i]
    )


CLIP = dict(clip_grad=dict(max_norm=1.0))


@pytest.mark.parametrize(
    'kind, settings',
    [
        (OptimWrapper, {}),
        (OptimWrapper, CLIP),
        (Bf16OptimWrapper, {}),
        (ScaledOptimWrapper, dict(init_scale=4.0)),
        (ScaledOptimWrapper, dict(init_scale=4.0, **CLIP)),
    ],
)
def test_a_nan_changes_nothing(tmp_path, kind, settings):
    runner, states = run(tmp_path, Numbers(bad=[13]), kind=kind, **deepcopy(settings))
    changed = [not same(*states[i : i + 2]) for i in range(8)]
    assert changed == [i != 3 for i in range(8)]  # sample 13 is in the fourth batch
    assert runner.message_hub.get_info('skipped_steps') == 1
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    expected = dict(kind='nonfinite', iter=4, images=['12.png', '13.png', '14.png', '15.png'])
    (event,) = events(tmp_path)
    (losses,) = event.pop('losses')
    assert event == expected and losses['loss'] == 'nan'


def test_an_infinite_norm_of_clipped_gradients_is_not_a_step_of_zeros(tmp_path):
    data = Numbers(bad=[13], value=1e25)  # whose square is infinite in fp32
    _, states = run(tmp_path, data, model=Mean, **deepcopy(CLIP))
    assert same(states[3], states[4]) and not same(states[4], states[5])


def test_infinite_running_statistics_are_restored_though_gradients_are_finite(tmp_path):
    _, states = run(tmp_path, Numbers(bad=[13], value=1e30))  # a variance of 1e60
    assert same(states[3], states[4]) and not same(states[4], states[5])
    assert events(tmp_path)[0]['losses'][0]['loss'] < 10


def test_with_accumulation_the_whole_step_is_skipped(tmp_path):
    _, states = run(tmp_path, Numbers(bad=[13]), accumulative_counts=4, iters=8)
    assert same((states[0][0], {}), (states[4][0], {}))  # buffers too: NaN came in the last one
    assert not same((states[4][0], {}), (states[8][0], {}))
    (event,) = events(tmp_path)
    assert event['iter'] == 4 and len(event['images']) == 16
    assert [losses['loss'] == 'nan' for losses in event['losses']] == [False] * 3 + [True]


def test_averaged_weights_stay_finite(tmp_path):
    from mmengine.hooks import EMAHook

    ema = EMAHook(update_buffers=True)
    run(tmp_path, Numbers(bad=[13]), hooks=[ema])
    assert all(value.isfinite().all() for value in ema.ema_model.state_dict().values())


def test_an_overflow_is_counted_and_the_scale_found(tmp_path):
    runner, states = run(tmp_path, Numbers(), iters=8, kind=ScaledOptimWrapper, init_scale=2.0**127)
    kinds = [event['kind'] for event in events(tmp_path)]
    assert 0 < len(kinds) < 8 and set(kinds) == {'overflow'}
    assert runner.message_hub.get_info('skipped_steps') == len(kinds)
    assert runner.message_hub.get_info('skipped_in_a_row') == 0
    skipped = {event['iter'] - 1 for event in events(tmp_path)}
    assert [same(*states[i : i + 2]) for i in range(8)] == [i in skipped for i in range(8)]


def test_too_many_in_a_row_end_the_run(tmp_path):
    data = Numbers(bad=range(8, 64))
    with pytest.raises(SetupError, match='iteration 5, 3 in a row: .*nonfinite.jsonl.*16.p'):
        run(tmp_path, data, hook=dict(max_in_a_row=3))
    assert [event['iter'] for event in events(tmp_path)] == [3, 4, 5]
    run(tmp_path, Numbers(bad=[4, 8, 16, 20]), iters=9, hook=dict(max_in_a_row=3))  # not in a row


def test_a_model_that_gives_no_paths_nor_gradients(tmp_path):
    assert _paths(None) == _paths(dict(inputs=1)) == _paths((1, 2)) == []
    assert _paths(dict(data_samples=[object(), SimpleNamespace(img_path='a.png')])) == ['a.png']


@pytest.mark.parametrize('library', ['mmpretrain', 'mmseg', 'mmdet'])
def test_paths_of_the_libraries_samples(library):
    from importlib import import_module

    name = dict(mmpretrain='DataSample', mmseg='SegDataSample', mmdet='DetDataSample')[library]
    sample = getattr(import_module(f'{library}.structures'), name)()
    assert _paths(dict(data_samples=[sample])) == []
    sample.set_metainfo(dict(img_path='a.png'))
    assert _paths(dict(data_samples=[sample])) == ['a.png']


def spikes(tmp_path, losses):
    """Iterations at which a history of losses is reported."""
    hub = MessageHub.get_instance(f'spikes{tmp_path.name}{len(losses)}')
    hook = NumericsHook()
    hook._file = tmp_path / 'nonfinite.jsonl'
    hook._file.touch()
    runner = SimpleNamespace(message_hub=hub, logger=logging.getLogger('spikes'))
    for i, loss in enumerate(losses):
        hub.update_scalar('train/loss', float(loss))
        hook._report_spike(runner, dict(iter=i + 1, losses=dict(loss=loss), images=['a.png']))
    return [event['iter'] for event in events(tmp_path)]


def test_a_spike_is_reported_once(tmp_path):
    losses = 3 + 0.1 * np.random.default_rng(0).standard_normal(300)
    losses[:90] += 5  # before there is a history
    losses[200:203] = 9
    losses[210], losses[250] = np.nan, np.inf
    losses[251] = 9
    assert spikes(tmp_path, losses) == [201, 252]


def test_noise_and_a_constant_loss_are_no_spikes(tmp_path):
    noise = np.random.default_rng(0).standard_normal(1500)
    assert spikes(tmp_path, 5 * np.exp(-np.arange(1500) / 500) + 0.2 * noise) == []
    assert spikes(tmp_path, 2 + 1e-4 * np.arange(400)) == []


def rank(number, tmp_path):
    import torch.distributed as dist

    torch.set_num_threads(1)
    place = f'file://{tmp_path}/rendezvous'
    dist.init_process_group('gloo', init_method=place, rank=number, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    wrapper = OptimWrapper(optimizer)
    hub = MessageHub.get_instance('ranks')
    logger = logging.getLogger('ranks')
    runner = SimpleNamespace(
        work_dir=str(tmp_path), optim_wrapper=wrapper, model=model, iter=0, message_hub=hub,
        logger=logger,
    )  # fmt: skip
    hook = NumericsHook()
    hook.before_train(runner)
    for runner.iter in range(3):
        before = deepcopy(model.state_dict())
        x = torch.rand(4, 4)
        loss = model(x * float('nan') if (runner.iter, number) == (1, 1) else x).mean()
        wrapper.update_params(loss)
        batch = dict(data_samples=[SimpleNamespace(img_path=f'{number}.png')])
        hook.after_train_iter(runner, 0, batch, dict(loss=loss))
        stayed = all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert stayed == (runner.iter == 1), (runner.iter, number)
    # So are gradients that only one rank has, as with sharded parameters.
    local = nn.Linear(4, 1)
    runner.optim_wrapper = OptimWrapper(torch.optim.AdamW(local.parameters()))
    hook.before_train(runner)
    before = deepcopy(local.state_dict())
    runner.optim_wrapper.update_params(local(x).mean() * (float('nan') if number else 1))
    assert all(torch.equal(before[k], v) for k, v in local.state_dict().items())
    dist.destroy_process_group()


def test_two_ranks_skip_together(tmp_path):
    torch.multiprocessing.start_processes(rank, (tmp_path,), nprocs=2, start_method='fork')
    for number in (0, 1):
        (line,) = (tmp_path / f'nonfinite_rank{number}.jsonl').read_text().splitlines()
        event = json.loads(line)
        assert event['iter'] == 2 and event['images'] == [f'{number}.png']
        assert (event['losses'][0]['loss'] == 'nan') == bool(number)


def test_counts_survive_a_checkpoint(tmp_path):
    runner, _ = run(tmp_path, Numbers(bad=[13]))
    other = MessageHub.get_instance(f'other{tmp_path.name}')
    other.load_state_dict(runner.message_hub.state_dict())
    assert other.get_info('skipped_steps') == 1
    assert np.isnan(other.get_scalar('train/loss').data[0][3])


def test_impossible_settings():
    with pytest.raises(ValueError, match='expected max_in_a_row'):
        NumericsHook(max_in_a_row=0)


@pytest.mark.gpu
def test_amp_on_a_gpu(tmp_path):
    from mmengine.optim import AmpOptimWrapper

    runner, states = run(tmp_path, Numbers(bad=[33]), iters=16, kind=AmpOptimWrapper)
    assert same(states[8], states[9]) and not same(states[9], states[10])
    assert 'nonfinite' in [event['kind'] for event in events(tmp_path)]
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
