"""Both paths of the loss against goldens, the equation over all patches, and finite differences."""

import pytest
import torch
from loss_inputs import loss_inputs, with_gradients

from mcbeit_mm.losses import MultiChoiceLoss, multi_choice_loss
from mcbeit_mm.targets import multi_choice_targets, soft_probs

both_paths = pytest.mark.parametrize('fused', [True, False], ids=['fused', 'plain'])


def reference(inputs, **settings):
    """All logits and targets first, then the mask: terms and gradients."""
    feats, weight, bias, token_logits, mask = inputs
    targets = multi_choice_targets(token_logits, feats, **settings)
    logits = feats @ weight.T + bias
    loss = -(targets * logits.log_softmax(-1)).sum(-1)[mask].mean()
    entropy = -torch.special.xlogy(targets, targets).sum(-1)[mask].mean().detach()
    hits = (logits.argmax(-1) == token_logits.flatten(2).argmax(1))[mask].double().mean()
    grads = torch.autograd.grad(loss, inputs[:3])
    loss = loss.detach()
    return dict(loss=loss, kl=loss - entropy, target_entropy=entropy, mlm_acc=hits), list(grads)


def example(counts=(1, 2, 3), **kwargs):
    return loss_inputs((2, 3), 5, 13, counts, **kwargs)


@both_paths
def test_golden_loss_and_accuracy_for_every_tau_and_omega(golden, fused):
    g = golden('pretrain')
    weight, bias = g['state/lm_head.weight'], g['state/lm_head.bias']
    for i, tau in enumerate(g['temps'].tolist()):
        for j, omega in enumerate(g['omegas'].tolist()):
            loss = MultiChoiceLoss(tau, omega, fused=fused)
            terms = loss.terms(g['feats'], weight, bias, g['d_logits'], g['mask'])
            assert float(terms['loss']) == pytest.approx(float(g['loss'][i, j]), rel=1e-6)
            assert float(terms['mlm_acc']) == pytest.approx(float(g['mlm_acc'][i, j]), abs=1e-7)
            targets = g['refined_targets'][i, j][g['mask']].double()
            entropy = -torch.special.xlogy(targets, targets).sum(-1).mean()
            assert float(terms['target_entropy']) == pytest.approx(float(entropy), rel=1e-5)
            assert float(terms['kl']) == pytest.approx(
                float(g['loss'][i, j]) - float(entropy), abs=1e-5
            )


@both_paths
@pytest.mark.parametrize(
    'tau, omega, detach, counts',
    [
        (1.3, 0.0, False, (1, 2, 3)),
        (1.3, 0.2, False, (0, 6, 2)),
        (1.3, 0.2, True, (4, 4, 4)),
        (4.0, 1.0, False, (6, 6, 6)),
        (0.0, 1.0, True, (1, 2, 3)),
        (0.0, 0.2, False, (5, 0, 1)),
    ],
)
def test_terms_and_gradients_equal_the_reference(tau, omega, detach, counts, fused):
    settings = dict(tau=tau, omega=omega, tau_affinity=0.6, detach_affinity=detach)
    inputs = example(counts)
    got = with_gradients(inputs, fused=fused, **settings)
    torch.testing.assert_close(got, reference(inputs, **settings), rtol=1e-9, atol=1e-12)


@both_paths
def test_gradcheck_through_targets(fused):
    feats, weight, bias, logits, mask = example((2, 0, 5))
    assert torch.autograd.gradcheck(
        lambda f, w, b: multi_choice_loss(f, w, b, logits, mask, tau=1.0, omega=0.5, fused=fused),
        (feats, weight, bias),
    )


@both_paths
def test_visible_patches_do_not_enter_the_loss_directly(fused):
    feats, weight, bias, logits, mask = example()
    settings = dict(omega=0.0, fused=fused)
    loss = multi_choice_loss(feats, weight, bias, logits, mask, **settings)
    changed = torch.where(mask.unsqueeze(-1), feats, feats + 1)
    assert torch.equal(multi_choice_loss(changed, weight, bias, logits, mask, **settings), loss)


@both_paths
def test_single_image_and_non_contiguous_inputs(fused):
    feats, weight, bias, logits, mask = example((4,))
    strided = torch.stack((feats, feats), dim=-1)[..., 0]
    assert not strided.is_contiguous()
    swapped = logits.transpose(1, 2).contiguous().transpose(1, 2)
    got = multi_choice_loss(strided, weight, bias, swapped, mask, fused=fused)
    torch.testing.assert_close(got, multi_choice_loss(feats, weight, bias, logits, mask))


@both_paths
@pytest.mark.parametrize('omega', [0.0, 0.2])
def test_no_masked_patch_gives_zero_with_zero_gradients(omega, fused):
    terms, grads = with_gradients(example((0, 0, 0)), omega=omega, fused=fused)
    assert [value.item() for value in terms.values()] == [0.0] * 4
    assert not any(grad.any() for grad in grads)


@both_paths
def test_any_best_guess_of_any_best_code_is_a_hit(fused):
    feats, weight, bias, logits, mask = (x.detach() for x in example())
    logits[:, :3] = 50.0  # three best codes; all logits of the head are equal
    loss = MultiChoiceLoss(fused=fused)
    hits = loss.terms(feats, weight * 0, bias * 0, logits, mask)['mlm_acc']
    assert hits == 1
    assert loss.terms(feats, weight * 0, -logits[0, :, 0, 0], logits, mask)['mlm_acc'] == 0
    hard = MultiChoiceLoss(tau=0, fused=fused)  # the first of the best codes is the only choice
    second = (torch.arange(13) == 1).double()
    assert hard.terms(feats, weight * 0, second, logits, mask)['mlm_acc'] == 0
    assert soft_probs(logits, 0)[..., 0].all()


@both_paths
def test_count_replaces_the_number_of_masked_patches(fused):
    inputs = example((1, 2, 3))
    loss = MultiChoiceLoss(fused=fused)
    expected = {k: v * 6 / 4 for k, v in loss.terms(*inputs).items()}
    torch.testing.assert_close(loss.terms(*inputs, count=torch.tensor(4)), expected)


@both_paths
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_rounds_only_the_linear_layer(dtype, fused):
    inputs = loss_inputs((4, 4), 32, 96, (9, 5), dtype=torch.float32)
    exact = multi_choice_loss(*inputs, fused=fused)
    with torch.autocast('cpu', dtype=dtype):
        terms, grads = with_gradients(inputs, fused=fused)
    assert {grad.dtype for grad in grads} == {torch.float32}
    assert float(terms['loss']) == pytest.approx(float(exact.detach()), rel=5e-3)
    # Targets need no product in half precision: their entropy is that of fp32.
    entropy = MultiChoiceLoss(fused=fused).terms(*inputs)['target_entropy']
    torch.testing.assert_close(terms['target_entropy'].float(), entropy, rtol=1e-6, atol=0)


@both_paths
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
def test_wrong_shapes_are_named(change, message, fused):
    names = ('feats', 'weight', 'bias', 'logits', 'mask')
    inputs = dict(zip(names, example(), strict=True))
    change(inputs)
    with pytest.raises(ValueError, match=message):
        multi_choice_loss(*inputs.values(), fused=fused)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(tau=-1), 'need tau >= 0'),
        (dict(tau_affinity=-1), 'tau_affinity > 0'),
        (dict(omega=1.2), r'must be in \[0, 1\]'),
        (dict(fused=False, compiled=True), 'set fused=True'),
    ],
)
def test_module_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiChoiceLoss(**settings)


@both_paths
def test_module_equals_function(fused):
    inputs = example()
    module = MultiChoiceLoss(2.0, 0.5, tau_affinity=0.7, detach_affinity=True, fused=fused)
    expected = multi_choice_loss(*inputs, fused=fused, **module.settings)
    assert torch.equal(module(*inputs), expected)


@pytest.mark.gpu
@both_paths
def test_cuda_equals_cpu(fused):
    inputs = loss_inputs((4, 4), 32, 96, (9, 5), dtype=torch.float32)
    loss = multi_choice_loss(*inputs, fused=fused)
    feats, weight, bias, logits, mask = (x.detach().cuda() for x in inputs)
    for places in (mask, mask.cpu()):
        on_gpu = multi_choice_loss(feats, weight, bias, logits, places, fused=fused)
        assert float(on_gpu) == pytest.approx(float(loss), rel=1e-5)
