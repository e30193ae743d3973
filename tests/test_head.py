"""The head: initialization, and its settings in the loss."""

import pytest
import torch
from loss_inputs import loss_inputs

from mcbeit_mm.head import MCBEiTHead
from mcbeit_mm.losses import multi_choice_loss


def test_weights_are_truncated_at_one_sigma():
    head = MCBEiTHead(128, 512)
    assert head.lm_head.weight.abs().max() <= 0.02 and not head.lm_head.bias.any()
    # Truncation at one sigma leaves 0.5396 of the standard deviation.
    assert float(head.lm_head.weight.detach().std()) == pytest.approx(0.02 * 0.5396, rel=0.03)


@pytest.mark.parametrize('fused', [True, False])
def test_loss_has_the_heads_settings(fused):
    settings = dict(tau=1.5, omega=0.6, tau_affinity=0.7, detach_affinity=True, fused=fused)
    head = MCBEiTHead(5, 13, **settings).double()
    feats, weight, bias, token_logits, mask = loss_inputs((2, 3), 5, 13, (1, 0, 4))
    head.lm_head.load_state_dict(dict(weight=weight, bias=bias))
    expected = multi_choice_loss(feats, weight, bias, token_logits, mask, **settings)
    torch.testing.assert_close(head.loss(feats, token_logits, mask)['loss'], expected)
    torch.testing.assert_close(head(feats), feats @ weight.T + bias)


def test_compile_loss_needs_the_fused_loss():
    assert MCBEiTHead(8, 16, compile_loss=True).multi_choice.compiled
    assert not MCBEiTHead(8, 16).multi_choice.compiled
    with pytest.raises(ValueError, match='set fused=True'):
        MCBEiTHead(8, 16, compile_loss=True, fused=False)
