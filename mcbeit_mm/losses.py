"""Features + token logits + mask -> soft cross-entropy on the masked patches.

`plain_sums` is the paper's equation. `layers.fused_loss`, the default, computes the same values and
gradients in less time and memory. The mean is taken over all masked patches of the batch, in
distributed training over those of all ranks (`patches_per_rank`).
Source: mc-BEiT (arXiv 2203.15371); lixiaotong97/mc-BEiT@37489a1 engine_for_pretraining.py.
"""

from functools import partial

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from .layers.fused_loss import fused_sums
from .targets import at_least_fp32, multi_choice_targets, soft_probs


def plain_sums(
    feats: Tensor, weight: Tensor, bias: Tensor, token_logits: Tensor, mask: Tensor, **settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, target entropy and hits, each summed over the masked patches.

    Arguments are those of `multi_choice_loss`. Only the loss has a gradient.
    """
    logits = at_least_fp32(F.linear(feats[mask], weight, bias))
    with torch.autocast(feats.device.type, enabled=False):
        targets = multi_choice_targets(token_logits, feats, **settings)[mask]
        loss = -(targets * logits.log_softmax(-1)).sum()
        with torch.no_grad():
            entropy = -torch.special.xlogy(targets, targets).sum()
            probs = soft_probs(token_logits, settings['tau'])[mask]
            best, guess = (x == x.amax(-1, keepdim=True) for x in (probs, logits))
            hits = (best & guess).any(-1).to(loss.dtype).sum()
    return loss, entropy, hits


def multi_choice_loss(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor,
    token_logits: Tensor,
    mask: Tensor,
    *,
    tau: float = 4.0,
    omega: float = 0.2,
    tau_affinity: float = 1.0,
    detach_affinity: bool = False,
    fused: bool = True,
) -> Tensor:
    """Soft cross-entropy of lm_head(feats) against the multi-choice targets, mean over masked
    patches.

    Args:
        feats: (B, L, D) after the final norm, class token removed.
        weight: (V, D) and bias (V,) of the lm_head.
        token_logits: (B, V, h, w) or (B, V, L), raw.
        mask: (B, L) bool, True = masked, on any device; a CPU mask avoids a host-device sync. With
            no masked patch the loss is 0.
        fused: False evaluates the equation as written, see `plain_sums`.
    """
    loss = MultiChoiceLoss(tau, omega, tau_affinity, detach_affinity, fused)
    return loss(feats, weight, bias, token_logits, mask)


@MODELS.register_module()
class MultiChoiceLoss(nn.Module):
    """`multi_choice_loss` as a module that holds the settings.

    Args:
        compiled: fuse the pointwise part of the fused loss by torch.compile.
    """

    def __init__(
        self,
        tau: float = 4.0,
        omega: float = 0.2,
        tau_affinity: float = 1.0,
        detach_affinity: bool = False,
        fused: bool = True,
        compiled: bool = False,
    ):
        super().__init__()
        if tau < 0 or tau_affinity <= 0:
            raise ValueError(
                f'need tau >= 0 (0: hard targets) and tau_affinity > 0, got {tau=} {tau_affinity=}'
            )
        if not 0 <= omega <= 1:
            raise ValueError(
                f'omega weights the refined targets and must be in [0, 1], got {omega}'
            )
        if compiled and not fused:
            raise ValueError('only the fused loss can be compiled: set fused=True')
        self.tau, self.omega = tau, omega
        self.tau_affinity, self.detach_affinity = tau_affinity, detach_affinity
        self.fused, self.compiled = fused, compiled

    @property
    def settings(self) -> dict:
        """Keyword arguments of `targets.multi_choice_targets`."""
        names = ('tau', 'omega', 'tau_affinity', 'detach_affinity')
        return {name: getattr(self, name) for name in names}

    def forward(
        self, feats: Tensor, weight: Tensor, bias: Tensor, token_logits: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the scalar loss; arguments as in `multi_choice_loss`."""
        return self.terms(feats, weight, bias, token_logits, mask)['loss']

    def terms(
        self,
        feats: Tensor,
        weight: Tensor,
        bias: Tensor,
        token_logits: Tensor,
        mask: Tensor,
        count: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss and its metrics, all scalars.

        target_entropy is the lower bound of the loss, kl = loss - target_entropy is what training
        can reduce, mlm_acc is the share of masked patches whose best guess is the tokenizer's best
        code.

        Args:
            count: divisor of the sums over masked patches; None counts this batch's.
        """
        mask = mask.flatten(1)
        _check_shapes(feats, weight, bias, token_logits, mask)
        if count is None:
            count = mask.sum().clamp_min(1).to(feats.device)
        sums_of = partial(fused_sums, compiled=self.compiled) if self.fused else plain_sums
        sums = sums_of(feats, weight, bias, token_logits, mask, **self.settings)
        loss, entropy, hits = (total / count for total in sums)
        return dict(loss=loss, kl=loss.detach() - entropy, target_entropy=entropy, mlm_acc=hits)


def patches_per_rank(mask: Tensor, device: torch.device | None = None) -> Tensor:
    """Masked patches of all ranks / number of ranks, a scalar on `device`; 1 if there are none.

    DistributedDataParallel averages gradients over ranks. Block masks give ranks different numbers
    of patches, so averaging the ranks' means is not the mean over all patches; averaging their sums
    divided by this count is. Accumulated steps weigh equally, whatever their numbers of patches.
    Without gradients (ranks may evaluate unequal numbers of batches), or in a single process, it is
    this rank's own count.
    """
    count = mask.sum(dtype=torch.float32).to(device or mask.device, non_blocking=True)
    if torch.is_grad_enabled():
        all_reduce(count, 'mean')
    return torch.where(count > 0, count, 1.0)


def _check_shapes(
    feats: Tensor, weight: Tensor, bias: Tensor, token_logits: Tensor, mask: Tensor
) -> None:
    batch, num_patches, dims = feats.shape
    vocab_size = weight.shape[0]
    got = tuple(token_logits.flatten(2).shape)
    if got != (batch, vocab_size, num_patches):
        raise ValueError(
            f'token logits {tuple(token_logits.shape)} do not fit {batch} images of {num_patches} '
            f'patches and {vocab_size} codes: the tokenizer view must have (patch grid) x '
            '(tokenizer stride) pixels, and vocab_size of the head must be that of the tokenizer'
        )
    if tuple(mask.shape) != (batch, num_patches) or mask.dtype != torch.bool:
        raise ValueError(
            f'mask must be bool {(batch, num_patches)}, got {mask.dtype} {tuple(mask.shape)}'
        )
    if weight.shape[1] != dims or tuple(bias.shape) != (vocab_size,):
        raise ValueError(
            f'lm_head weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit '
            f'{dims}-dim features'
        )
