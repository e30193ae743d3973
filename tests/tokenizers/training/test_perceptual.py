import pytest
import torch

from mcbeit_mm.tokenizers.training.perceptual import STAGES, PerceptualLoss

pytest.importorskip('torchmetrics')


@pytest.fixture(scope='module')
def lpips():
    """torchmetrics' LPIPS with its linear layers and random VGG weights of trained size."""
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    net = _LPIPS(pretrained=True, net='vgg', pnet_rand=True)
    for name, parameter in net.net.named_parameters():
        if name.endswith('bias'):  # torchvision's are 0
            parameter.data.uniform_(-0.1, 0.1)
    return net


@pytest.fixture(scope='module')
def vgg_state(lpips):
    state = {}
    for name, tensor in lpips.net.state_dict().items():
        state[f'features.{name.split(".", 1)[1]}'] = tensor
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


def pairs():
    a = torch.rand(2, 3, 40, 33) * 2 - 1
    b = (a + 0.3 * torch.randn_like(a)).clamp(-1, 1)
    return a.requires_grad_(), b.requires_grad_()


def test_equals_torchmetrics_with_gradients(loss, lpips):
    ours = pairs()
    got = loss(*ours)
    got.sum().backward()
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    expected = lpips(*theirs).flatten()
    expected.sum().backward()
    assert got.shape == (2,) and got.min() > 1e-3
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-7)
    for x, y in zip(ours, theirs, strict=True):
        assert y.grad.abs().max() > 0
        assert (x.grad - y.grad).abs().max() < 1e-5 * y.grad.abs().max()


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


def test_image_sizes(loss):
    assert loss(*torch.rand(2, 1, 3, 16, 16)).shape == (1,)
    for shape in ((1, 3, 15, 32), (1, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match='16 px or more'):
            loss(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match=r'\(1, 3, 32, 32\) and \(2, 3, 32, 32\)'):
        loss(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize('layout', ['lin{}.model.1.weight', 'lin{}.model.0.weight'])
def test_layouts_of_the_linear_layers(lpips, vgg_file, loss, tmp_path, layout):
    state = {layout.format(i): lin.model[-1].weight.detach() for i, lin in enumerate(lpips.lins)}
    state['scaling_layer.shift'] = torch.zeros(1, 3, 1, 1)  # in the state dict of the whole model
    torch.save(state, tmp_path / 'lins.pth')
    a, b = pairs()
    assert torch.equal(PerceptualLoss(vgg_file, tmp_path / 'lins.pth')(a, b), loss(a, b))


def test_stages_are_those_of_torchvision():
    from torchvision.models.vgg import cfgs

    widths, layer = [[]], 0
    for width in cfgs['D'][:-1]:  # vgg16 without its last pooling
        if width == 'M':
            widths.append([])
            layer += 1
        else:
            widths[-1].append((layer, width))
            layer += 2
    assert tuple(map(tuple, widths)) == STAGES


def test_missing_files(vgg_file, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='nothing is downloaded.*vgg16-397923af.pth'):
        PerceptualLoss(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='lpips_weights.*none.pth.*nothing is downloaded'):
        PerceptualLoss(vgg_file, tmp_path / 'none.pth')
    monkeypatch.setattr('mcbeit_mm.tokenizers.training.perceptual.find_spec', lambda name: None)
    with pytest.raises(FileNotFoundError, match='pip install torchmetrics'):
        PerceptualLoss(vgg_file)


def test_weights_of_something_else(vgg_file, vgg_state, tmp_path):
    file = tmp_path / 'other.pth'
    torch.save({k: v for k, v in vgg_state.items() if k != 'features.28.bias'}, file)
    with pytest.raises(ValueError, match='no features.28.bias.*vgg16-397923af.pth'):
        PerceptualLoss(file)
    torch.save(vgg_state | {'features.0.weight': torch.zeros(64, 1, 3, 3)}, file)
    with pytest.raises(ValueError, match=r'features.0.weight of shape \(64, 1, 3, 3\)'):
        PerceptualLoss(file)
    torch.save({'lin0.model.1.weight': torch.zeros(1, 64, 1, 1)}, file)
    with pytest.raises(ValueError, match=r'no lin1.weight.*weights/v0.1/vgg.pth'):
        PerceptualLoss(vgg_file, file)
