"""Several processes compute the same as one process on the same images."""

import pytest
import torch
from conftest import relative_error
from ddp_runs import CASES, everything, model, on_ranks


@pytest.fixture(scope='module')
def alone():
    return everything(0, 1)


@pytest.fixture(scope='module', params=[2, 4])
def ranks(request, tmp_path_factory):
    return on_ranks(request.param, tmp_path_factory.mktemp('ranks'), everything)


@pytest.mark.parametrize('name', CASES)
def test_loss_metrics_and_gradients_are_those_of_one_process(ranks, alone, name):
    got, expected = [rank[name] for rank in ranks], alone[name]
    for key, value in expected['terms'].items():
        mean = torch.stack([rank['terms'][key] for rank in got]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-6, atol=1e-6)
    for key, grad in expected['grads'].items():
        scale = float(grad.abs().max())
        assert scale > 0 or name == 'nothing_masked'
        for rank in got:
            torch.testing.assert_close(rank['grads'][key], grad, rtol=0, atol=2e-6 * scale)


def test_mean_of_the_ranks_own_means_would_differ(ranks, alone):
    """Shows that the comparison above can fail."""
    expected, got = alone['refined']['grads'], ranks[0]['own means']['grads']
    assert max(relative_error(got[key], grad) for key, grad in expected.items()) > 0.05


@pytest.mark.parametrize('name', ['weights', 'accumulated'])
def test_training_is_that_of_one_process(ranks, alone, name):
    for key, value in alone[name].items():
        # Each step moves a weight by up to lr = 1e-2.
        torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-5, atol=1e-5)


def test_ranks_hold_equal_weights_and_runs_repeat_bit_by_bit(ranks, alone):
    for rank in ranks:
        for key, value in ranks[0]['weights'].items():
            assert torch.equal(rank['weights'][key], value)
            assert torch.equal(rank['weights again'][key], value)
    start = model().state_dict()
    assert max(float((v - start[k]).abs().max()) for k, v in alone['weights'].items()) > 1e-2
