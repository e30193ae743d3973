"""The loss and its gradients against goldens, a plain reference, and finite differences."""

import pytest
import torch

from mcbeit_mm.losses import MultiChoiceLoss, multi_choice_loss, multi_choice_terms
from mcbeit_mm.targets import multi_choice_targets


def plain_loss(feats, weight, bias, token_logits, mask, **settings):
    """All logits, all targets, then the mask: the equations as they stand."""
    targets = multi_choice_targets(token_logits, feats, **settings)
    log_probs = (feats @ weight.T + bias).log_softmax(-1)
    return -(targets * log_probs).sum(-1)[mask].mean()


def example(batch=3, patches=6, dims=5, vocab=13, dtype=torch.float64, counts=None):
    feats = torch.randn(batch, patches, dims, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, dims, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocab, dtype=dtype, requires_grad=True)
    logits = torch.randn(batch, vocab, patches, dtype=dtype) * 4
    mask = torch.zeros(batch, patches, dtype=torch.bool)
    for row, count in zip(mask, counts or range(1, batch + 1), strict=True):
        row[torch.randperm(patches)[:count]] = True
    return feats, weight, bias, logits, mask


def test_golden_loss_and_accuracy_for_every_tau_and_omega(golden):
    g = golden('pretrain')
    weight, bias = g['state/lm_head.weight'], g['state/lm_head.bias']
    for i, tau in enumerate(g['temps'].tolist()):
        for j, omega in enumerate(g['omegas'].tolist()):
            terms = multi_choice_terms(
                g['feats'], weight, bias, g['d_logits'], g['mask'], tau=tau, omega=omega
            )
            assert float(terms['loss']) == pytest.approx(float(g['loss'][i, j]), rel=1e-6)
            assert float(terms['mlm_acc']) == pytest.approx(float(g['mlm_acc'][i, j]), abs=1e-7)
            targets = g['refined_targets'][i, j][g['mask']].double()
            entropy = -torch.special.xlogy(targets, targets).sum(-1).mean()
            assert float(terms['target_entropy']) == pytest.approx(float(entropy), rel=1e-5)
            assert float(terms['kl']) == pytest.approx(
                float(g['loss'][i, j]) - float(entropy), abs=1e-5
            )


@pytest.mark.parametrize('omega', [0.0, 0.2, 1.0])
@pytest.mark.parametrize('detach', [False, True])
@pytest.mark.parametrize('counts', [(1, 2, 3), (0, 6, 2), (4, 4, 4), (6, 6, 6)])
def test_loss_and_gradients_equal_plain_equations(omega, detach, counts):
    inputs = example(counts=counts)
    settings = dict(tau=1.3, omega=omega, tau_affinity=0.6, detach_affinity=detach)
    feats, weight, bias = inputs[:3]
    got = multi_choice_loss(*inputs, **settings)
    expected = plain_loss(*inputs, **settings)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    for a, b in zip(
        torch.autograd.grad(got, (feats, weight, bias)),
        torch.autograd.grad(expected, (feats, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gradcheck_through_targets():
    feats, weight, bias, logits, mask = example(counts=(2, 0, 5))
    assert torch.autograd.gradcheck(
        lambda f, w, b: multi_choice_loss(f, w, b, logits, mask, tau=1.0, omega=0.5),
        (feats, weight, bias),
    )


def test_visible_patches_do_not_enter_the_loss_directly():
    feats, weight, bias, logits, mask = example()
    loss = multi_choice_loss(feats, weight, bias, logits, mask, omega=0.0)
    changed = torch.where(mask.unsqueeze(-1), feats, feats + 1)
    assert torch.equal(multi_choice_loss(changed, weight, bias, logits, mask, omega=0.0), loss)


def test_single_image_and_non_contiguous_inputs():
    feats, weight, bias, logits, mask = example(batch=1, counts=(4,))
    strided = torch.stack((feats, feats), dim=-1)[..., 0]
    assert not strided.is_contiguous()
    swapped = logits.transpose(1, 2).contiguous().transpose(1, 2)
    got = multi_choice_loss(strided, weight, bias, swapped, mask)
    torch.testing.assert_close(got, multi_choice_loss(feats, weight, bias, logits, mask))


def test_no_masked_patch_gives_zero_with_zero_gradient():
    inputs = example(counts=(0, 0, 0))
    terms = multi_choice_terms(*inputs)
    terms['loss'].backward()
    assert [v.item() for v in terms.values()] == [0.0] * 4
    assert inputs[1].grad.abs().max() == 0


def test_bf16_autocast_stays_close():
    feats, weight, bias, logits, mask = example(
        batch=2, patches=16, dims=32, vocab=96, dtype=torch.float32, counts=(9, 5)
    )
    exact = multi_choice_loss(feats, weight, bias, logits, mask)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loose = multi_choice_loss(feats, weight, bias, logits, mask)
    assert loose.dtype == torch.float32
    assert float(loose.detach()) == pytest.approx(float(exact.detach()), rel=5e-3)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda i: i.update(logits=torch.randn(3, 13, 7)), 'tokenizer view'),
        (lambda i: i.update(logits=torch.randn(3, 12, 6)), 'vocab_size'),
        (lambda i: i.update(mask=torch.ones(3, 7, dtype=torch.bool)), 'mask must be bool'),
        (lambda i: i.update(mask=torch.ones(3, 6)), 'mask must be bool'),
        (lambda i: i.update(weight=torch.randn(13, 4)), 'lm_head'),
    ],
)
def test_wrong_shapes_are_named(change, message):
    names = ('feats', 'weight', 'bias', 'logits', 'mask')
    inputs = dict(zip(names, example(), strict=True))
    change(inputs)
    with pytest.raises(ValueError, match=message):
        multi_choice_loss(*inputs.values())


@pytest.mark.parametrize('settings', [dict(tau=-1), dict(omega=1.2), dict(tau_affinity=-1)])
def test_module_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match='need tau >= 0|lies in'):
        MultiChoiceLoss(**settings)


def test_module_equals_function():
    inputs = example()
    module = MultiChoiceLoss(tau=2.0, omega=0.5, tau_affinity=0.7, detach_affinity=True)
    assert torch.equal(module(*inputs), multi_choice_loss(*inputs, **module.settings))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    inputs = example(batch=2, patches=16, dims=32, vocab=96, dtype=torch.float32, counts=(9, 5))
    loss = multi_choice_loss(*inputs)
    on_gpu = multi_choice_loss(*(x.detach().cuda() for x in inputs))
    assert float(on_gpu) == pytest.approx(float(loss), rel=1e-5)
