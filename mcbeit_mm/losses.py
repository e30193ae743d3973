"""Features + token logits + mask -> soft cross-entropy on the masked patches.

Only masked rows of logits and targets are formed, chunk by chunk (`fused_loss`); the mean runs over
all masked patches of the batch, in training over those of all ranks (`patches_per_rank`).
Source: mc-BEiT (arXiv 2203.15371); lixiaotong97/mc-BEiT@37489a1 engine_for_pretraining.py.
"""

import torch
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor, nn

from .layers.fused_loss import CHUNK_ELEMENTS, FusedSums, MaskedPlaces, Plan, Precision
from .targets import affinity, soft_probs


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
    *,
    tau: float = 4.0,
    omega: float = 0.2,
    tau_affinity: float = 1.0,
    detach_affinity: bool = False,
    compiled: bool = False,
) -> dict[str, Tensor]:
    """The loss of `multi_choice_loss` with what is worth logging beside it, all scalars.

    target_entropy is the floor of the loss, kl = loss - target_entropy is what training can
    reduce, mlm_acc the share of masked patches whose best guess is the tokenizer's own best token.

    Args:
        mask: on any device; on the CPU it spares a CUDA device a wait.
        count: what the sums over masked patches are divided by; the number of them unless given.
        compiled: fuse what is not a matrix product by torch.compile.
    """
    mask = mask.flatten(1)
    _check_shapes(feats, weight, bias, token_logits, mask)
    places = MaskedPlaces.of(mask, feats.device)
    per_image = feats.shape[1] * len(weight)
    chunk = CHUNK_ELEMENTS.get(feats.device.type, CHUNK_ELEMENTS['cpu'])

    def affinity_of(feats: Tensor) -> Tensor:
        return affinity(feats.detach() if detach_affinity else feats, tau_affinity)

    plan = Plan(
        lambda images: soft_probs(token_logits[images], tau),
        affinity_of if omega > 0 else None,
        places,
        omega,
        Precision.of(feats, weight),
        max(1, chunk // per_image),
        with_grad=torch.is_grad_enabled(),
        compiled=compiled,
    )
    with torch.autocast(feats.device.type, enabled=False):
        sums = FusedSums.apply(feats, weight, bias, plan)
    if count is None:
        count = mask.sum().clamp_min(1).to(feats.device)
    loss, entropy, hits = (total / count for total in sums)
    return dict(loss=loss, kl=loss.detach() - entropy, target_entropy=entropy, mlm_acc=hits)


def patches_per_rank(mask: Tensor, device: torch.device | None = None) -> Tensor:
    """Masked patches of all ranks / number of ranks, a scalar on `device`; 1 where there is none.

    DistributedDataParallel averages gradients over ranks. Block masks give ranks different numbers
    of patches, so the mean of the ranks' own means is not the mean over all patches; the mean of
    their sums over this count is. Accumulated steps count equally, whatever their numbers of
    patches. Without gradients (ranks may evaluate unequal numbers of batches), and in a single
    process, it is this rank's own number.
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
