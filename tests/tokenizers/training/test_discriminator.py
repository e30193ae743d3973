import pytest
import torch
from torch import nn

from mcbeit_mm.tokenizers.training.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_loss,
)


def test_number_of_parameters_and_output_sizes():
    net = PatchDiscriminator()
    # 4x4 convolutions 3-64-128-256-512-1, bias in the first and last; two values per norm channel.
    expected = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1
    expected += 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in net.parameters()) == expected
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)  # 64-32-16-8, then 7, 6
    assert net(torch.zeros(1, 3, 256, 128)).shape == (1, 1, 30, 14)


def test_names_are_those_of_taming():
    names = [name for name, _ in PatchDiscriminator(ndf=8).named_parameters()]
    convs = [f'main.{i}.weight' for i in (0, 2, 5, 8, 11)]
    norms = [f'main.{i}.{kind}' for i in (3, 6, 9) for kind in ('weight', 'bias')]
    assert sorted(names) == sorted([*convs, *norms, 'main.0.bias', 'main.11.bias'])


@pytest.mark.parametrize(('num_layers', 'size'), [(1, 6), (2, 12), (3, 24), (4, 48)])
def test_smallest_image(num_layers, size):
    net = PatchDiscriminator(ndf=2, num_layers=num_layers)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 1, 1, 1)
    widest = max(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert widest == 2 * min(2**num_layers, 8)


def test_receptive_field_is_70_px():
    net = PatchDiscriminator(ndf=2).eval()
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    net(x)[0, 0, 7, 7].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_initial_weights():
    net = PatchDiscriminator()
    weight = net.main[8].weight
    assert abs(weight.std().item() - 0.02) < 1e-3 and abs(weight.mean().item()) < 1e-3
    norm = net.main[9]
    assert abs(norm.weight.mean().item() - 1) < 5e-3 and abs(norm.weight.std().item() - 0.02) < 5e-3
    assert not norm.bias.any()


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0, 2.0])
    # real: 0, 0.5, 2 -> 2.5 / 3; fake: 0, 1, 2, 3 -> 6 / 4
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 1.5))


def test_adaptive_weight_against_closed_form():
    layer = nn.Linear(4, 3, bias=False).double()
    x = torch.randn(5, 4, dtype=torch.double)
    y = layer(x)
    rec, gan = y.square().mean(), -y.mean()
    rec_grad = 2 / 15 * (x @ layer.weight.T).T @ x
    gan_grad = -x.sum(0).expand(3, 4) / 15
    expected = rec_grad.norm() / (gan_grad.norm() + 1e-4)
    got = adaptive_weight(rec, gan, layer.weight)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6) and not got.requires_grad
    assert layer.weight.grad is None
    (rec + got * gan).backward()  # both graphs are retained
    assert torch.allclose(layer.weight.grad, rec_grad + expected * gan_grad, atol=1e-7)


def test_adaptive_weight_is_clamped():
    weight = torch.ones(1, requires_grad=True)
    assert adaptive_weight(1e9 * weight.sum(), 0 * weight.sum(), weight) == 1e4
    assert adaptive_weight(weight.sum(), 0 * weight.sum(), weight).item() == pytest.approx(1e4)
    assert adaptive_weight(0 * weight.sum(), weight.sum(), weight) == 0
