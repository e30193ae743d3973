import socket
from pathlib import Path

import pytest
import torch
import torchmetrics
from torch import nn
from torchvision.models import vgg16

from mcbeit_mm.tokenizers.training.perceptual import PerceptualLoss

LINS = Path(torchmetrics.__file__).parent / 'functional/image/lpips_models/vgg.pth'


@pytest.fixture(scope='module')
def features():
    """torchvision's VGG16 features with random weights and biases."""
    with torch.device('meta'):
        net = vgg16().features
    net = net.to_empty(device='cpu').requires_grad_(False)
    torch.manual_seed(0)
    for module in net:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            nn.init.uniform_(module.bias, -0.1, 0.1)
        elif isinstance(module, nn.ReLU):
            module.inplace = False  # slow_lpips keeps intermediate features
    return net


@pytest.fixture(scope='module')
def lins():
    return torch.load(LINS, map_location='cpu', weights_only=True)


@pytest.fixture(scope='module')
def vgg_state(features):
    state = {f'features.{name}': tensor for name, tensor in features.state_dict().items()}
    assert len(state) == 26
    return state | {'classifier.0.weight': torch.zeros(2, 2)}


@pytest.fixture(scope='module')
def vgg_file(vgg_state, tmp_path_factory):
    file = tmp_path_factory.mktemp('vgg') / 'vgg16-397923af.pth'
    torch.save(vgg_state, file)
    return file


@pytest.fixture(scope='module')
def loss(vgg_file):
    return PerceptualLoss(vgg_file)


def slow_lpips(features, lins, a, b):
    """LPIPS by its definition: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, unit length in C."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y = (a - shift) / scale, (b - shift) / scale
    total, stage = 0, 0
    for layer, module in enumerate(features):
        x, y = module(x), module(y)
        if layer in (3, 8, 15, 22, 29):
            difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
            weight = lins[f'lin{stage}.model.1.weight'].flatten()
            total = total + torch.einsum('bchw,c->bhw', difference.square(), weight).mean((1, 2))
            stage += 1
    return total


def pairs():
    a = torch.rand(2, 3, 40, 33) * 2 - 1
    b = (a + 0.3 * torch.randn_like(a)).clamp(-1, 1)
    return a.requires_grad_(), b.requires_grad_()


def test_the_private_network_of_torchmetrics_exists():
    from torchmetrics.functional.image import lpips

    assert hasattr(lpips, '_NoTrainLpips'), (
        f'torchmetrics {torchmetrics.__version__} moved its LPIPS network: adapt '
        'mcbeit_mm/tokenizers/training/perceptual.py'
    )


def test_lpips_by_its_definition_with_gradients(loss, features, lins):
    ours = pairs()
    got = loss(*ours)
    got.sum().backward()
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    expected = slow_lpips(features, lins, *theirs)
    expected.sum().backward()
    assert got.shape == (2,) and got.min() > 1e-3
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-7)
    for x, y in zip(ours, theirs, strict=True):
        assert y.grad.abs().max() > 0
        assert (x.grad - y.grad).abs().max() < 1e-5 * y.grad.abs().max()


def test_construction_is_offline_and_draws_no_random_numbers(vgg_file, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError('network access')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', refuse)
    state = torch.get_rng_state()
    PerceptualLoss(vgg_file)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_images(loss):
    a = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance = loss(a, a.detach())
    distance.sum().backward()
    assert distance.item() == 0 and not a.grad.any()


def test_finite_where_all_features_vanish(vgg_state, tmp_path):
    torch.save(vgg_state | {'features.28.bias': torch.full((512,), -1e6)}, tmp_path / 'vgg.pth')
    a, b = pairs()
    distance = PerceptualLoss(tmp_path / 'vgg.pth')(a, b)
    distance.sum().backward()
    assert distance.isfinite().all() and a.grad.isfinite().all() and b.grad.isfinite().all()


def test_frozen_and_out_of_the_state_dict(loss):
    assert not list(loss.parameters()) and not loss.state_dict()
    assert not any(buffer.requires_grad for buffer in loss.buffers())


def test_fp32_under_autocast(loss):
    a, b = pairs()
    with torch.autocast('cpu', torch.bfloat16):
        got = loss(a, b)
        half = loss(a.bfloat16(), b.bfloat16())
    assert got.dtype == half.dtype == torch.float32
    assert torch.equal(got, loss(a, b))


def test_smallest_image(loss):
    assert loss(*torch.rand(2, 1, 3, 16, 16)).shape == (1,)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth: download https'):
        PerceptualLoss(tmp_path / 'none.pth')


def test_weights_of_something_else(vgg_state, tmp_path):
    file = tmp_path / 'other.pth'
    torch.save({k: v for k, v in vgg_state.items() if k != 'features.28.bias'}, file)
    with pytest.raises(ValueError, match='no features.28.bias.*vgg16-397923af.pth'):
        PerceptualLoss(file)
    torch.save(vgg_state | {'features.0.weight': torch.zeros(64, 1, 3, 3)}, file)
    with pytest.raises(ValueError, match=r'features.0.weight of shape \(64, 3, 3, 3\)'):
        PerceptualLoss(file)
