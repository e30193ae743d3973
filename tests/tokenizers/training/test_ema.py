import copy

import pytest
import torch
from conftest import TINY_VQGAN, relative_error
from golden_tokenizers import golden_state, sizes_of
from trainers import PREPROCESSOR, build, error_of, pictures, run, steps

from mcbeit_mm.tokenizers import EMAVQGAN, EMAVQGANTokenizer, EMAVQGANTrainer, GumbelVQGANTokenizer
from mcbeit_mm.tokenizers.training.codebook import count_codes, perplexity


def trainer(**kwargs):
    return build(EMAVQGANTrainer, **kwargs)


def test_golden_quantizer(golden):
    ema = golden('tokenizer_ema')
    model = EMAVQGANTrainer(**sizes_of(ema), warmup_iters=0, total_iters=10).eval()
    model.vqgan.load_state_dict(golden_state('ema'))
    with torch.no_grad():
        found = model.quantize(ema['pre_quant'])
        images = model.vqgan.decode_latents(found.latents)
    assert torch.equal(found.ids.flatten(1), ema['indices'])
    assert relative_error(found.latents, ema['z_q']) <= 1e-5
    assert relative_error(found.loss, ema['commit_loss']) <= 1e-5
    assert relative_error(images, ema['reconstruction']) <= 1e-5
    counts = count_codes(found.ids, model.vqgan.vocab_size)
    assert relative_error(perplexity(counts / counts.sum()), ema['perplexity']) <= 1e-5
    torch.testing.assert_close(model.vqgan.state_dict(), golden_state('ema'))  # eval mode


def slow_update(weight, cluster_size, embed_avg, vectors, decay, eps):
    """Reference of taming's EMAVectorQuantizer and EmbeddingEMA, code by code, in fp64."""
    num_codes = len(weight)
    nearest = [
        min(range(num_codes), key=lambda k: float((vector - weight[k]).square().sum()))
        for vector in vectors
    ]
    for k in range(num_codes):
        members = [v for v, code in zip(vectors, nearest, strict=True) if code == k]
        cluster_size[k] = decay * cluster_size[k] + (1 - decay) * len(members)
        embed_avg[k] = decay * embed_avg[k] + (1 - decay) * sum(members, torch.zeros(4))
    n = cluster_size.sum()
    for k in range(num_codes):
        weight[k] = embed_avg[k] / ((cluster_size[k] + eps) / (n + num_codes * eps) * n)


@pytest.mark.parametrize('decay, eps', [(0.99, 1e-5), (0.8, 0.1)])
def test_moving_averages_equal_a_slow_reference(decay, eps):
    model = trainer(decay=decay, eps=eps)
    book = model.vqgan.quantize.embedding
    book['cluster_size'].uniform_(0.5, 2)
    names = ('weight', 'cluster_size', 'embed_avg')
    expected = [book[name].detach().double().clone() for name in names]
    for _ in range(4):
        latents = torch.randn(2, 4, 3, 3)
        model.quantize(latents)
        slow_update(*expected, latents.double().movedim(1, 3).flatten(0, 2), decay, eps)
    for name, value in zip(names, expected, strict=True):
        assert relative_error(book[name], value) <= 1e-5


def test_gradients_pass_straight_through():
    model = trainer(beta=0.5).eval()
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    found = model.quantize(latents)
    slope = torch.randn_like(latents)
    ((found.latents * slope).sum() + found.loss).backward()
    codes = model.vqgan.codebook[found.ids].permute(0, 3, 1, 2)
    expected = slope + 0.5 * 2 * (latents - codes).detach() / latents.numel()
    torch.testing.assert_close(latents.grad, expected)


def test_only_the_moving_averages_move_the_codes():
    model = trainer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    losses = model(pictures(8), mode='loss')
    before = copy.deepcopy(model.vqgan.quantize.state_dict())
    optimizer.zero_grad()
    losses['loss'].backward()
    optimizer.step()
    torch.testing.assert_close(model.vqgan.quantize.state_dict(), before, rtol=0, atol=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert len(trained) == len(list(model.parameters())) - 3


def test_loss_is_reconstruction_plus_commitment():
    losses = trainer()(pictures(8), mode='loss')
    expected = float(losses['rec']) + float(losses['commit'])
    assert float(losses['loss'].detach()) == pytest.approx(expected, rel=1e-6)


def test_warmup_does_not_change_the_codes():
    model = trainer(warmup_iters=3)
    before = copy.deepcopy(model.vqgan.quantize.state_dict())
    steps(model, 3)
    torch.testing.assert_close(model.vqgan.quantize.state_dict(), before, rtol=0, atol=0)


def test_placed_codes_are_their_own_means():
    model, codes = trainer(), torch.randn(16, 4)
    model.place_codes(codes, torch.randn(100, 4))
    book = model.vqgan.quantize.embedding
    assert torch.equal(book['weight'], codes)
    torch.testing.assert_close(book['embed_avg'] / book['cluster_size'][:, None], codes)


def test_training_improves_and_exports(tmp_path):
    sizes = dict(warmup_iters=50, total_iters=150, data_preprocessor=PREPROCESSOR)
    before = run(trainer(**sizes | dict(warmup_iters=1)), tmp_path / 'before', 2)
    model = trainer(**sizes)
    folder = run(model, tmp_path / 'after', 150)
    tokenizer = EMAVQGANTokenizer(checkpoint=folder)
    assert error_of(tokenizer) < 0.6 * error_of(EMAVQGANTokenizer(checkpoint=before))
    assert tokenizer(pictures(64)).argmax(dim=1).unique().numel() >= 8
    images = pictures(8)
    with torch.no_grad():
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        vqgan = copy.deepcopy(model.vqgan).eval().to(memory_format=torch.channels_last)
        assert torch.equal(tokenizer(images), vqgan.encode(x))
    state = torch.load(folder / 'last.ckpt', weights_only=True)['state_dict']
    assert state.keys() == EMAVQGAN(**TINY_VQGAN).state_dict().keys()
    with pytest.raises(ValueError, match="use type='EMAVQGANTokenizer'"):
        GumbelVQGANTokenizer(checkpoint=folder)
