import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import ROOT, TINY_VQGAN
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from trainers import DISCRIMINATOR, PREPROCESSOR, build, pictures, steps

from mcbeit_mm.tokenizers import EMAVQGANTrainer, GumbelVQGANTrainer
from mcbeit_mm.tokenizers.training import trainer as training
from mcbeit_mm.tokenizers.training.codebook import kmeans

BOTH = pytest.mark.parametrize('cls', [GumbelVQGANTrainer, EMAVQGANTrainer])


def gradients(model):
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(warmup_iters=100), 'warmup_iters=100'),
        (dict(warmup_iters=-1), 'warmup_iters=-1'),
        (
            dict(warmup_iters=0, discriminator=dict(type='PatchDiscriminator'), disc_start=100),
            'disc_start=100',
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(EMAVQGANTrainer, total_iters=100, **kwargs)


def test_reconstruction_loss_and_psnr():
    model = build(EMAVQGANTrainer, warmup_iters=5)
    x = 2 * pictures(4) - 1
    losses = model(pictures(4), mode='loss')
    with torch.no_grad():
        images = model.vqgan.decode_latents(model.vqgan.encode_latents(x))
    difference = images - x
    assert float(losses['rec']) == pytest.approx(float(difference.abs().mean()), rel=1e-5)
    squares = ((images.clamp(-1, 1) - x) / 2).double().square().flatten(1).mean(dim=1)
    psnr = sum(-10 * math.log10(square) for square in squares) / 4
    assert float(losses['psnr']) == pytest.approx(psnr, rel=1e-4)


class Distance(nn.Module):
    def forward(self, a, b):
        return (a - b).square().flatten(1).sum(dim=1)


def test_perceptual_loss_is_weighted_and_scales_the_adversarial_one():
    MODELS.register_module(name='TestDistance', module=Distance, force=True)
    kwargs = dict(warmup_iters=5, perceptual=dict(type='TestDistance'), perceptual_weight=0.1)
    losses = build(EMAVQGANTrainer, **kwargs)(pictures(4), mode='loss')
    expected = float(losses['rec']) + 0.1 * float(losses['perceptual'])
    assert float(losses['loss'].detach()) == pytest.approx(expected, rel=1e-5)
    kwargs |= dict(discriminator=DISCRIMINATOR)
    strong = build(EMAVQGANTrainer, **kwargs)(pictures(4), mode='loss')
    weak = build(EMAVQGANTrainer, **kwargs | dict(perceptual=None))(pictures(4), mode='loss')
    assert float(strong['gan_weight']) > 1.5 * float(weak['gan_weight'])


def two_backward_passes(model, images):
    """Gradients and BatchNorm statistics of separate generator and discriminator passes."""
    x = 2 * images - 1
    vqgan, disc = model.vqgan, model.discriminator
    decoded = vqgan.decode_latents(vqgan.encode_latents(x))
    rec = F.l1_loss(decoded, x)
    gan = -copy.deepcopy(disc)(decoded).mean()
    norms = [
        torch.autograd.grad(loss, vqgan.decoder.conv_out.weight, retain_graph=True)[0].norm()
        for loss in (rec, gan)
    ]
    (rec + 0.8 * norms[0] / (norms[1] + 1e-4) * gan).backward()
    real, fake = disc(x), disc(decoded.detach())
    (0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())).backward()
    return gradients(model), dict(disc.named_buffers())


@BOTH
def test_one_backward_pass_equals_two(cls):
    """Compared in the plain autoencoder, which does not sample."""
    model = build(cls, warmup_iters=5, discriminator=DISCRIMINATOR)
    reference = copy.deepcopy(model)
    expected, buffers = two_backward_passes(reference, pictures(8))
    losses = model(pictures(8), mode='loss')
    assert all(p.grad is None for p in model.parameters())
    losses['loss'].backward()
    found = gradients(model)
    for name, gradient in expected.items():
        if name.startswith('vqgan.quantize'):
            assert torch.equal(found[name], torch.zeros_like(found[name]))
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dict(model.discriminator.named_buffers()), buffers)
    total = losses['rec'] + losses['gan_weight'] * losses['gan'] + losses['disc']
    assert float(losses['loss'].detach()) == pytest.approx(float(total), rel=1e-5)


@BOTH
def test_discriminator_changes_nothing_before_its_start(cls):
    kwargs = dict(discriminator=DISCRIMINATOR, disc_start=1)
    plain, model = build(cls), build(cls, **kwargs)
    before = copy.deepcopy(model.discriminator.state_dict())
    for each in (plain, model):
        torch.manual_seed(1)
        each(pictures(8), mode='loss')['loss'].backward()
    found = gradients(model)
    for name, gradient in gradients(plain).items():
        assert torch.equal(found[name], gradient)
    own = [gradient for name, gradient in found.items() if name.startswith('discriminator.')]
    assert own and all(not gradient.any() for gradient in own)  # and none is None
    torch.testing.assert_close(model.discriminator.state_dict(), before, rtol=0, atol=0)
    assert 'gan' not in steps(build(cls, **kwargs), 1)
    assert 'gan' in steps(build(cls, **kwargs), 2)


@BOTH
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision(cls, dtype):
    model = build(cls, discriminator=DISCRIMINATOR)
    reference = copy.deepcopy(model)
    with torch.autocast('cpu', dtype):
        losses = model(pictures(8), mode='loss')
    assert {value.dtype for value in losses.values()} == {torch.float32}
    losses['loss'].backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    expected = reference(pictures(8), mode='loss')
    assert float(losses['rec']) == pytest.approx(float(expected['rec']), rel=0.05)
    assert float(losses['gan_weight']) == pytest.approx(float(expected['gan_weight']), rel=0.1)


@BOTH
def test_predictions(cls):
    model = build(cls, data_preprocessor=PREPROCESSOR).eval()
    images = pictures(3)
    data = dict(inputs=255 * images, data_samples=[DataSample(number=i) for i in range(3)])
    samples = [sample.to_dict() for sample in model.val_step(data)]  # as passed to metrics
    assert [sample['number'] for sample in samples] == [0, 1, 2]
    with torch.no_grad():
        ids = model(images).argmax(dim=1)
        decoded = ((model.vqgan.decode_tokens(ids) + 1) / 2).clamp(0, 1)
    for sample, image, code, reconstruction in zip(samples, images, ids, decoded, strict=True):
        torch.testing.assert_close(sample['original'], image)
        torch.testing.assert_close(sample['reconstruction'], reconstruction, rtol=0, atol=1e-5)
        assert torch.equal(sample['codes'], code) and code.dtype == torch.long


@BOTH
def test_warmup_predictions_are_those_of_the_autoencoder(cls):
    model, images = build(cls, warmup_iters=5).eval(), pictures(2)
    with torch.no_grad():
        decoded = model.vqgan.decode_latents(model.vqgan.encode_latents(2 * images - 1))
    for with_codes in (False, True):
        model.placed.fill_(with_codes)
        assert model.has_codes == with_codes
        found = torch.stack([sample.reconstruction for sample in model(images, None, 'predict')])
        same = torch.allclose(found, ((decoded + 1) / 2).clamp(0, 1), atol=1e-5)
        assert same == (not with_codes)


@BOTH
@pytest.mark.parametrize('warmup_iters', [0, 2, 50])
def test_prediction_changes_no_state(cls, warmup_iters):
    """With codes, right before they are placed, and during the warm-up."""
    model = build(cls, warmup_iters, discriminator=DISCRIMINATOR, restart_interval=1)
    steps(model, 2)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model(pictures(4), mode='predict')
    assert len(model._latents) == (2 if warmup_iters else 0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@BOTH
def test_codes_are_placed_from_as_many_latents_after_a_resume(cls, monkeypatch):
    """Without the latents of this rank, a resumed run collects them again."""
    seen = []
    monkeypatch.setattr(training, 'kmeans', lambda v, n: seen.append(len(v)) or kmeans(v, n))
    model = build(cls, warmup_iters=3)
    steps(model, 3)
    resumed = build(cls, warmup_iters=3)
    resumed.load_state_dict(model.state_dict())
    steps(model, 1)
    assert model.has_codes and seen == [1024]  # 64 vectors for each of 16 codes
    steps(resumed, 2)
    assert not resumed.has_codes and seen == [1024]
    losses = steps(resumed, 1)
    assert resumed.has_codes and seen == [1024, 1024] and 'perplexity' in losses


@BOTH
def test_resuming_is_exact(cls):
    model = build(cls, warmup_iters=2, discriminator=DISCRIMINATOR, disc_start=3)
    steps(model, 4)
    resumed = build(cls, warmup_iters=2, discriminator=DISCRIMINATOR, disc_start=3)
    resumed.load_state_dict(model.state_dict())
    found = []
    for each in (model, resumed):
        torch.manual_seed(1)
        found.append(steps(each, 1))
    assert found[0].keys() == found[1].keys() >= {'gan', 'codes_restarted', 'perplexity'}
    torch.testing.assert_close(found[0], found[1])


def train_rank(rank, folder, cls):
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/{cls.__name__}', rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    model = cls(
        **TINY_VQGAN,
        warmup_iters=2,
        total_iters=10,
        discriminator=DISCRIMINATOR,
        disc_start=4,
        restart_interval=2,
    )
    ddp = MMDistributedDataParallel(model)  # refuses parameters without gradient
    optimizer = OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-3))
    images = pictures(64).unflatten(0, (2, 4, 8))[rank]
    for step in range(7):
        if step == 5:
            model.usage.histogram.fill_(1 / 8)
            model.usage.histogram[:8] = 0  # due for a restart
            model.usage.grace.zero_()
        ddp.train_step(dict(inputs=images[step % 4]), optimizer)
    torch.save(model.state_dict(), f'{folder}/{cls.__name__}{rank}.pt')
    dist.destroy_process_group()


@BOTH
def test_two_processes_stay_equal(cls, tmp_path):
    mp.start_processes(train_rank, args=(tmp_path, cls), nprocs=2, start_method='fork')
    one, two = (torch.load(tmp_path / f'{cls.__name__}{rank}.pt') for rank in range(2))
    statistics = [name for name in one if 'running_' in name]
    for name in one.keys() - set(statistics):  # BatchNorm statistics differ between ranks
        assert torch.equal(one[name], two[name]), name
    assert statistics and not any(torch.equal(one[name], two[name]) for name in statistics)
    assert int(one['usage.restarted']) >= 7
    assert float(one['usage.histogram'].sum()) == pytest.approx(1, rel=1e-5)


def test_demo_config():
    config = Config.fromfile(ROOT / 'configs' / 'demo' / 'tokenizer_gumbel-f8-256_demo.py')
    assert config.train_dataloader.dataset.data_root == 'data/demo/classification'
    assert config.model.n_embed == 256
    assert config.model.total_iters == config.train_cfg.max_iters
    assert any(hook.type == 'ExportTokenizerHook' for hook in config.custom_hooks)
