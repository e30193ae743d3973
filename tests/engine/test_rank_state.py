"""State of each process in a checkpoint."""

import logging
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from mmengine.optim import OptimWrapper
from small_runs import same, small_run, weights
from torch import nn
from torch.multiprocessing import start_processes

from mcbeit_mm.engine import rank_state

HOOK = dict(type='SafeCheckpointHook', by_epoch=False, interval=5)


class Counter(nn.Module):
    """A module with state of its own in each process."""

    def __init__(self, value=None):
        super().__init__()
        self.value = value

    def rank_state(self):
        return None if self.value is None else dict(value=torch.tensor(self.value), note='x')

    def load_rank_state(self, state):
        self.value = state['value'].item()


def fake_runner(value=None, gradient=None):
    model = nn.Sequential(nn.Linear(2, 1, bias=False), Counter(value))
    if gradient is not None:
        model[0].weight.grad = torch.full((1, 2), gradient)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1))
    return SimpleNamespace(model=model, optim_wrapper=wrapper, logger=logging.getLogger('test'))


@pytest.mark.parametrize('save_at', [5, 6, 8])  # within an accumulation of 3, at its end, within
def test_resuming_within_an_accumulation_is_exact(tmp_path, save_at):
    hook = HOOK | dict(interval=save_at)
    whole = small_run(tmp_path / 'whole', hook, iters=11, accumulate=3)
    whole.train()
    saved = torch.load(tmp_path / f'whole/iter_{save_at}.pth', weights_only=False)
    assert ('rank_states' in saved) == bool(save_at % 3)
    rest = small_run(
        tmp_path / 'rest',
        hook,
        iters=11,
        accumulate=3,
        resume=True,
        load_from=str(tmp_path / f'whole/iter_{save_at}.pth'),
    )
    rest.train()
    assert same(weights(rest), weights(whole))
    assert same(rest.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict())


def test_without_the_gradients_it_would_not_be(tmp_path):
    whole = small_run(tmp_path / 'whole', HOOK, iters=11, accumulate=3)
    whole.train()
    saved = torch.load(tmp_path / 'whole/iter_5.pth', weights_only=False)
    del saved['rank_states']
    torch.save(saved, tmp_path / 'stripped.pth')
    rest = small_run(
        tmp_path / 'rest',
        HOOK,
        iters=11,
        accumulate=3,
        resume=True,
        load_from=str(tmp_path / 'stripped.pth'),
    )
    rest.train()
    assert not same(weights(rest), weights(whole))


def test_nothing_to_keep():
    assert rank_state.collect(fake_runner()) is None


def test_modules_and_gradients_are_restored():
    states = rank_state.collect(fake_runner(7, 0.5))
    runner = fake_runner()
    rank_state.restore(runner, states)
    assert runner.model[1].value == 7
    assert runner.model[0].weight.grad.tolist() == [[0.5, 0.5]]
    runner.model[0].weight.grad += 1  # a copy, not the tensors of the file
    assert states[0]['gradients']['0.weight'].tolist() == [[0.5, 0.5]]


def test_another_number_of_processes(caplog):
    runner = fake_runner()
    rank_state.restore(runner, rank_state.collect(fake_runner(7, 0.5)) * 2)
    assert runner.model[1].value is None and runner.model[0].weight.grad is None
    assert 'saved by 2 processes, resumed by 1' in caplog.text


def two_ranks(rank, port, folder):
    """Only rank 1 has a state; both get their own back."""
    address = f'tcp://127.0.0.1:{port}'
    torch.distributed.init_process_group('gloo', address, rank=rank, world_size=2)
    assert rank_state.collect(fake_runner()) is None
    states = rank_state.collect(fake_runner(10, 2.0) if rank else fake_runner())
    assert (states is None) == (rank == 1)
    if rank == 0:
        torch.save(states, f'{folder}/states.pth')
    torch.distributed.barrier()
    runner = fake_runner()
    rank_state.restore(runner, torch.load(f'{folder}/states.pth', weights_only=True))
    assert runner.model[1].value == (10 if rank else None)
    assert (runner.model[0].weight.grad is not None) == bool(rank)
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    start_processes(two_ranks, (port, str(tmp_path)), nprocs=2, start_method='fork')
    states = torch.load(tmp_path / 'states.pth', weights_only=True)
    assert states[0] == {} and states[1]['modules']['1']['note'] == 'x'
