"""Features + token logits + mask -> soft cross-entropy on the masked patches.

Only masked rows of logits, affinity and targets are formed; the mean runs over all masked patches
of the batch, in training over those of all ranks (`patches_per_rank`).
Source: mc-BEiT (arXiv 2203.15371); lixiaotong97/mc-BEiT@37489a1 engine_for_pretraining.py.
"""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from .targets import at_least_fp32, soft_probs


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
) -> Tensor:
    """Soft cross-entropy of lm_head(feats) against the multi-choice targets, mean over masked
    patches.

    Args:
        feats: (B, L, D) after the final norm, class token removed.
        weight: (V, D) and bias (V,) of the lm_head.
        token_logits: (B, V, h, w) or (B, V, L), raw.
        mask: (B, L) bool, True = masked. With no masked patch the loss is 0.
    """
    settings = dict(
        tau=tau, omega=omega, tau_affinity=tau_affinity, detach_affinity=detach_affinity
    )
    return multi_choice_terms(feats, weight, bias, token_logits, mask, **settings)['loss']


def multi_choice_terms(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor,
    token_logits: Tensor,
    mask: Tensor,
    count: Tensor | None = None,
    **settings,
) -> dict[str, Tensor]:
    """The loss of `multi_choice_loss` with what is worth logging beside it, all scalars.

    target_entropy is the floor of the loss, kl = loss - target_entropy is what training can
    reduce, mlm_acc the share of masked patches whose best guess is the tokenizer's own best token.

    Args:
        count: what the sums over masked patches are divided by; the number of them unless given.
    """
    mask = mask.flatten(1)
    _check_shapes(feats, weight, bias, token_logits, mask)
    targets = masked_targets(feats, token_logits, mask, **settings)
    logits = at_least_fp32(F.linear(feats[mask], weight, bias))
    if count is None:
        count = max(len(logits), 1)
    with torch.autocast(feats.device.type, enabled=False):
        loss = -(targets * logits.log_softmax(dim=-1)).sum() / count
        with torch.no_grad():
            entropy = -torch.special.xlogy(targets, targets).sum() / count
            labels = token_logits.flatten(2).argmax(dim=1)[mask]
            hits = (logits.argmax(dim=-1) == labels).sum() / count
    return dict(loss=loss, kl=loss.detach() - entropy, target_entropy=entropy, mlm_acc=hits)


def patches_per_rank(mask: Tensor) -> Tensor:
    """Masked patches of all ranks / number of ranks, a scalar; 1 where there is none.

    DistributedDataParallel averages gradients over ranks. Block masks give ranks different numbers
    of patches, so the mean of the ranks' own means is not the mean over all patches; the mean of
    their sums over this count is. Accumulated steps count equally, whatever their numbers of
    patches. Without gradients (ranks may evaluate unequal numbers of batches), and in a single
    process, it is this rank's own number.
    """
    count = mask.sum(dtype=torch.float32)
    if torch.is_grad_enabled():
        all_reduce(count, 'mean')
    return torch.where(count > 0, count, 1.0)


def masked_targets(
    feats: Tensor,
    token_logits: Tensor,
    mask: Tensor,
    *,
    tau: float = 4.0,
    omega: float = 0.2,
    tau_affinity: float = 1.0,
    detach_affinity: bool = False,
) -> Tensor:
    """Rows `multi_choice_targets(...)[mask]`, (M, V), from the masked rows of W."""
    with torch.autocast(feats.device.type, enabled=False):
        probs = soft_probs(token_logits, tau)
        if omega == 0:
            return probs[mask]
        directions = F.normalize(
            at_least_fp32(feats.detach() if detach_affinity else feats), dim=-1
        )
        counts = mask.sum(dim=1)
        # Masked positions first, in ascending order; images with fewer of them are padded by
        # visible ones.
        order = mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        rows = directions.gather(1, order.unsqueeze(-1).expand(-1, -1, directions.shape[-1]))
        weights = (rows @ directions.transpose(1, 2) / tau_affinity).softmax(dim=-1)
        wanted = torch.arange(order.shape[1], device=mask.device) < counts.unsqueeze(1)
        refined = (weights @ probs)[wanted]
        return omega * refined + (1 - omega) * probs[mask]


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


@MODELS.register_module()
class MultiChoiceLoss(nn.Module):
    """`multi_choice_terms` as a module that holds tau, omega and the affinity's settings."""

    def __init__(
        self,
        tau: float = 4.0,
        omega: float = 0.2,
        tau_affinity: float = 1.0,
        detach_affinity: bool = False,
    ):
        super().__init__()
        if tau < 0 or tau_affinity <= 0:
            raise ValueError(
                f'need tau >= 0 (0: hard targets) and tau_affinity > 0, got {tau=} {tau_affinity=}'
            )
        if not 0 <= omega <= 1:
            raise ValueError(f'omega weights the refined term and lies in [0, 1], got {omega}')
        self.tau, self.omega = tau, omega
        self.tau_affinity, self.detach_affinity = tau_affinity, detach_affinity

    @property
    def settings(self) -> dict:
        """Keyword arguments of the functions in this module and in `targets`."""
        names = ('tau', 'omega', 'tau_affinity', 'detach_affinity')
        return {name: getattr(self, name) for name in names}

    def forward(
        self, feats: Tensor, weight: Tensor, bias: Tensor, token_logits: Tensor, mask: Tensor
    ) -> Tensor:
        """Scalar loss; arguments as in `multi_choice_loss`."""
        return multi_choice_loss(feats, weight, bias, token_logits, mask, **self.settings)
