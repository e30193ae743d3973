import math

import pytest
import torch
from trainers import build, pictures, steps

from mcbeit_mm.tokenizers import EMAVQGANTrainer, GumbelVQGANTrainer
from mcbeit_mm.tokenizers.training.codebook import (
    CodeUsage,
    as_vectors,
    count_codes,
    draw,
    kmeans,
    perplexity,
    scale_for_entropy,
)


def test_as_vectors():
    latents = torch.randn(2, 3, 4, 5)
    assert torch.equal(as_vectors(latents)[1 * 20 + 2 * 5 + 3], latents[1, :, 2, 3])


def test_kmeans_leaves_little_distance():
    places = 10 * torch.randn(12, 3)
    vectors = places.repeat_interleave(50, dim=0) + 0.01 * torch.randn(600, 3)
    centers = kmeans(vectors, 48)
    assert float(torch.cdist(vectors, centers).min(dim=1).values.max()) < 0.1


def test_kmeans_ends_at_means():
    vectors = torch.randn(300, 2)
    centers = kmeans(vectors, 4, rounds=200)
    nearest = torch.cdist(vectors, centers).argmin(dim=1)
    means = torch.stack([vectors[nearest == code].mean(dim=0) for code in range(4)])
    torch.testing.assert_close(centers, means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_scale_for_entropy(share):
    logits = torch.randn(100, 20)
    probs = (scale_for_entropy(logits, share) * logits).softmax(dim=1)
    entropy = -(probs * probs.log()).sum(dim=1).mean()
    assert float(entropy) == pytest.approx(share * math.log(20), rel=1e-4)


def test_perplexity():
    assert float(perplexity(torch.full((7,), 1 / 7))) == pytest.approx(7)
    assert float(perplexity(torch.tensor([0.0, 1.0, 0.0]))) == 1.0
    probs = torch.tensor([0.5, 0.25, 0.25])
    assert float(perplexity(probs)) == pytest.approx(2**1.5)


def test_count_codes():
    counts = count_codes(torch.tensor([[[0, 2], [2, 2]]]), 4)
    assert counts.tolist() == [1, 0, 3, 0] and counts.dtype == torch.float32


@pytest.mark.parametrize('tokens, rate', [(1000, 0.02), (4, 0.02), (2, 0.01)])
def test_usage_is_a_moving_average(tokens, rate):
    """Over 50 steps, or as many as a code with a fair share needs to be picked 50 times."""
    usage, expected = CodeUsage(4), [0.0] * 4
    for _ in range(3):
        counts = torch.bincount(torch.randint(4, (tokens,)), minlength=4).tolist()
        usage.update(torch.tensor(counts).float())
        expected = [
            (1 - rate) * old + rate * count / tokens
            for old, count in zip(expected, counts, strict=True)
        ]
    assert usage.histogram.tolist() == pytest.approx(expected, rel=1e-5)
    fair = sum(expected) / 4
    assert usage.in_use().tolist() == [value > 0.1 * fair for value in expected]


def test_restarts_renew_grace_and_leave_the_logs_alone():
    """Only 8 of 512 codes are ever picked: 504 are dead after every 50 iterations."""
    usage, counts = CodeUsage(512), torch.zeros(512)
    counts[:8] = 64
    for step in range(1, 151):
        usage.update(counts)
        dead = usage.dead()
        assert len(dead) == (504 if step % 50 == 0 else 0), step
        usage.restart(dead)
        logs = {name: float(value) for name, value in usage.logs().items()}
        expected = dict(codebook_usage=8 / 512, perplexity=8, codes_restarted=504 * (step // 50))
        assert logs == pytest.approx(expected, rel=1e-4)


def test_restarted_codes_survive_if_picked():
    usage = CodeUsage(4)
    for _ in range(60):
        usage.update(torch.tensor([60.0, 40.0, 0.0, 0.0]))
    assert usage.dead().tolist() == [2, 3]
    usage.restart(usage.dead())
    for _ in range(50):
        usage.update(torch.tensor([55.0, 40.0, 5.0, 0.0]))
    assert usage.in_use().tolist() == [True, True, True, False]
    assert usage.dead().tolist() == [3]


def test_draw_repeats_only_if_it_must():
    vectors = torch.arange(10.0)[:, None]
    assert draw(vectors, 7).unique().numel() == 7
    assert torch.bincount(draw(vectors, 25).long().flatten()).tolist().count(3) == 5


def kill(trainer, codes):
    """Make `codes` dead: no latent picks them, and their grace is over."""
    with torch.no_grad():
        if isinstance(trainer, GumbelVQGANTrainer):
            trainer.vqgan.quantize['proj'].bias[codes] -= 1e3
        else:
            trainer.vqgan.codebook[codes] += 1e3
            trainer.vqgan.quantize.embedding['embed_avg'][codes] += 1e3
    trainer.usage.histogram[codes] = 0
    trainer.usage.grace.zero_()


@pytest.mark.parametrize('cls', [GumbelVQGANTrainer, EMAVQGANTrainer])
@pytest.mark.parametrize('interval', [0, 4])
def test_restarts_revive_dead_codes(cls, interval):
    trainer = build(cls, warmup_iters=12, total_iters=120, restart_interval=interval)
    steps(trainer, 13)
    dead = torch.arange(8)
    kill(trainer, dead)
    picked = torch.zeros(16)
    for _ in range(5):
        losses = steps(trainer, 4)
        with torch.no_grad():
            picked += count_codes(trainer(pictures(64)).argmax(dim=1), 16)
    alive = picked[dead] > 0.1 * picked.sum() / 16  # more than a tenth of the fair share
    if interval:
        assert float(losses['codes_restarted']) >= 8
        assert int(alive.sum()) >= 7
        assert float(losses['codebook_usage']) > 0.9
    else:
        assert float(losses['codes_restarted']) == 0
        assert not picked[dead].any()
        assert float(losses['codebook_usage']) <= 0.5
