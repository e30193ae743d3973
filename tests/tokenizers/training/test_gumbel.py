import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_VQGAN
from trainers import PREPROCESSOR, build, error_of, pictures, run, steps

from mcbeit_mm.tokenizers import GumbelVQGAN, GumbelVQGANTokenizer, GumbelVQGANTrainer


def trainer(**kwargs):
    return build(GumbelVQGANTrainer, **kwargs)


def test_training_improves_and_exports(tmp_path):
    sizes = dict(warmup_iters=50, total_iters=150, data_preprocessor=PREPROCESSOR)
    before = run(trainer(**sizes | dict(warmup_iters=1)), tmp_path / 'before', 2)
    model = trainer(**sizes)
    folder = run(model, tmp_path / 'after', 150)
    tokenizer = GumbelVQGANTokenizer(checkpoint=folder)
    assert error_of(tokenizer) < 0.6 * error_of(GumbelVQGANTokenizer(checkpoint=before))
    ids = tokenizer(pictures(64)).argmax(dim=1)
    assert ids.unique().numel() >= 4
    images = pictures(8)
    with torch.no_grad():
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        vqgan = copy.deepcopy(model.vqgan).eval().to(memory_format=torch.channels_last)
        assert torch.equal(tokenizer(images), vqgan.encode(x))
    assert sorted(path.name for path in folder.iterdir()) == ['last.ckpt', 'model.yaml']
    state = torch.load(folder / 'last.ckpt', weights_only=True)['state_dict']
    assert state.keys() == GumbelVQGAN(**TINY_VQGAN).state_dict().keys()


def test_losses():
    model = trainer(warmup_iters=2, kl_weight=0.5)
    steps(model, 3)
    losses = model(pictures(8), mode='loss')
    assert float(losses['loss'].detach()) == pytest.approx(
        float(losses['rec']) + 0.5 * float(losses['kl']), rel=1e-5
    )
    assert 0 < float(losses['codebook_usage']) <= 1
    assert 1 <= float(losses['perplexity']) <= TINY_VQGAN['n_embed'] + 1e-3
    losses['loss'].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_quantize_by_its_definition():
    model = trainer(kl_weight=0.5, temperature=(0.7, 0.7))
    latents = torch.randn(2, TINY_VQGAN['embed_dim'], 3, 3)
    torch.manual_seed(1)
    found = model.quantize(latents)
    logits = model.vqgan.quantize['proj'](latents).detach()
    torch.manual_seed(1)
    picked = F.gumbel_softmax(logits, 0.7, hard=True, dim=1).argmax(dim=1)
    expected = model.vqgan.codebook[picked].permute(0, 3, 1, 2)
    torch.testing.assert_close(found.latents, expected, atol=1e-6, rtol=0)
    assert torch.equal(found.ids, logits.argmax(dim=1))
    probs = logits.softmax(dim=1)
    kl = sum(float((p * (p * len(p)).log()).sum()) for p in probs.movedim(1, 3).flatten(0, 2))
    assert float(found.logs['kl']) == pytest.approx(kl / (2 * 9), rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx(0.5 * kl / (2 * 9), rel=1e-4)


@pytest.mark.parametrize(
    'schedule, expected',
    [
        ('exponential', [1.0, 1.0, 0.5, 0.25, 0.25]),
        ('cosine', [1.0, 1.0, 0.625, 0.25, 0.25]),
    ],
)
def test_schedules_are_functions_of_the_iteration(schedule, expected):
    kwargs = dict(
        warmup_iters=10,
        total_iters=20,
        temperature=(1.0, 0.25),
        temperature_schedule=schedule,
    )
    model = trainer(**kwargs)
    found = []
    for iteration in (0, 10, 15, 20, 30):
        model.iteration.fill_(iteration)
        found.append(model.tau())
    assert found == pytest.approx(expected)
    model.iteration.fill_(13)
    resumed = trainer(**kwargs)
    resumed.load_state_dict(model.state_dict())
    assert resumed.tau() == model.tau() != 1.0


def test_cosine_is_tamings():
    """LambdaWarmUpCosineScheduler of taming without a warm-up: min + (max - min)(1 + cos)/2."""
    model = trainer(total_iters=1000, temperature=(0.9, 1e-6), temperature_schedule='cosine')
    model.iteration.fill_(250)
    expected = 1e-6 + 0.5 * (0.9 - 1e-6) * (1 + math.cos(0.25 * math.pi))
    assert model.tau() == pytest.approx(expected, rel=1e-12)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="is 'linear', expected one of .'exponential', 'cosine'"):
        trainer(temperature_schedule='linear')


def placed():
    model = trainer()
    codes, vectors = torch.randn(16, 4), torch.randn(500, 4)
    model.place_codes(codes, vectors)
    return model, codes, vectors


def test_logits_of_placed_codes_are_distances():
    model, codes, vectors = placed()
    with torch.no_grad():
        logits = model.vqgan.token_logits(vectors[:, :, None, None]).flatten(1)
    assert torch.equal(logits.argmax(dim=1), torch.cdist(vectors, codes).argmin(dim=1))
    entropy = torch.special.entr(logits.softmax(dim=1)).sum(dim=1).mean()
    assert float(entropy) == pytest.approx(0.5 * math.log(16), rel=1e-3)
    assert torch.equal(model.vqgan.codebook, codes)


def test_restarted_rows_equal_placed_rows():
    model, codes, _ = placed()
    proj, ids = model.vqgan.quantize['proj'], torch.tensor([3, 8])
    weight, bias = proj.weight.detach().clone(), proj.bias.detach().clone()
    with torch.no_grad():
        for tensor in (proj.weight, proj.bias, model.vqgan.codebook):
            tensor[ids] = -50.0
    model.restart_codes(ids, codes[ids])
    torch.testing.assert_close(proj.weight, weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(proj.bias, bias, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.vqgan.codebook, codes)


def test_restarted_codes_win_at_their_positions():
    model = trainer()
    vectors = 3 * torch.randn(5, 4)
    ids = torch.arange(5)
    model.restart_codes(ids, vectors)
    with torch.no_grad():
        logits = model.vqgan.token_logits(vectors[:, :, None, None]).flatten(1)
    assert (logits.diagonal() > logits[:, 5:].max(dim=1).values).all()
