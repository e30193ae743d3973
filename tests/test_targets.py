"""Targets against the authors' arrays and against slow loops."""

import math

import pytest
import torch
from conftest import relative_error

from mcbeit_mm.targets import affinity, multi_choice_targets, refine, soft_probs, tau_at


def test_every_tau_and_omega_equals_golden(golden):
    g = golden('pretrain')
    weights = affinity(g['feats'])
    assert relative_error(weights, g['W']) < 1e-5
    for i, tau in enumerate(g['temps'].tolist()):
        probs = soft_probs(g['d_logits'], tau)
        assert relative_error(probs, g['soft_targets'][i]) < 1e-5
        for j, omega in enumerate(g['omegas'].tolist()):
            refined = refine(probs, weights, omega)
            assert relative_error(refined, g['refined_targets'][i, j]) < 1e-5
            whole = multi_choice_targets(g['d_logits'], g['feats'], tau=tau, omega=omega)
            assert torch.equal(whole, refined)


def slow_targets(logits, feats, tau, omega, tau_affinity):
    """The equations, one patch and one code at a time, in Python floats."""
    batch, vocab, patches = logits.shape
    out = torch.zeros(batch, patches, vocab, dtype=torch.float64)
    for b in range(batch):
        z, f = logits[b].double(), feats[b].double()
        probs = []
        for i in range(patches):
            exps = [math.exp(z[k, i] / tau) for k in range(vocab)]
            probs.append([e / sum(exps) for e in exps])
        for i in range(patches):
            cosines = [float(f[i] @ f[j] / (f[i].norm() * f[j].norm())) for j in range(patches)]
            exps = [math.exp(c / tau_affinity) for c in cosines]
            row = [e / sum(exps) for e in exps]
            for k in range(vocab):
                mixed = sum(row[j] * probs[j][k] for j in range(patches))
                out[b, i, k] = omega * mixed + (1 - omega) * probs[i][k]
    return out


@pytest.mark.parametrize('tau, omega, tau_affinity', [(4.0, 0.2, 1.0), (0.7, 0.9, 0.3)])
def test_equals_slow_reference(tau, omega, tau_affinity):
    logits, feats = torch.randn(2, 7, 6) * 5, torch.randn(2, 6, 5)
    got = multi_choice_targets(
        logits.double(), feats.double(), tau=tau, omega=omega, tau_affinity=tau_affinity
    )
    torch.testing.assert_close(
        got, slow_targets(logits, feats, tau, omega, tau_affinity), rtol=1e-10, atol=1e-12
    )


def test_grid_is_row_major():
    logits = torch.randn(1, 5, 2, 3)
    probs = soft_probs(logits, 1.0)
    torch.testing.assert_close(probs[0, 4], logits[0, :, 1, 1].softmax(0))


def test_rows_sum_to_one_and_limits():
    logits, feats = torch.randn(2, 11, 3, 3) * 8, torch.randn(2, 9, 4)
    rows = multi_choice_targets(logits, feats).sum(-1)
    torch.testing.assert_close(rows, torch.ones(2, 9), rtol=0, atol=1e-6)
    assert torch.equal(multi_choice_targets(logits, feats, omega=0.0), soft_probs(logits, 4.0))
    hard = torch.nn.functional.one_hot(logits.flatten(2).argmax(1), 11).float()
    torch.testing.assert_close(soft_probs(logits, 1e-4), hard)  # tau -> 0 is BEiT's single choice


def test_permuting_patches_permutes_targets():
    logits, feats, order = torch.randn(1, 6, 8), torch.randn(1, 8, 4), torch.randperm(8)
    direct = multi_choice_targets(logits, feats)[:, order]
    torch.testing.assert_close(multi_choice_targets(logits[:, :, order], feats[:, order]), direct)


def test_gradient_flows_through_the_affinity_only_unless_detached():
    logits, feats = torch.randn(1, 6, 8), torch.randn(1, 8, 4, requires_grad=True)
    multi_choice_targets(logits, feats).square().sum().backward()
    assert feats.grad.abs().max() > 1e-6
    assert not multi_choice_targets(logits, feats, detach_affinity=True).requires_grad


def test_half_precision_logits_are_softened_in_fp32():
    logits = torch.randn(1, 8192, 4) * 4
    probs = soft_probs(logits.half(), 4.0)
    assert probs.dtype == torch.float32
    assert (
        relative_error(probs, soft_probs(logits, 4.0)) < 5e-3
    )  # fp16 rounding of the logits alone


def test_tau_schedule_equals_golden_from_epoch_zero(golden_json):
    compared = 0
    for case in golden_json('optim')['temperature_schedule']:
        args = case['args']
        if case['values'] is None or args['start_epoch'] != 0:
            continue  # the authors' schedule fails, or restarts on resume
        got = [tau_at(e, args['temp'], args['temp_warmup']) for e in range(args['epochs'])]
        assert got == pytest.approx(case['values'], rel=1e-12)
        compared += 1
    assert compared >= 3


def test_tau_schedule_of_short_runs():
    assert tau_at(0, 4.0, 1.0, warmup_epochs=30) == 1.0
    assert tau_at(10, 4.0, 1.0, warmup_epochs=5) == 4.0
    assert tau_at(0, 4.0, 1.0, warmup_epochs=0) == 4.0
