"""Token logits + patch features -> multi-choice targets.

Shapes: B images, L patches, D embed_dims, V vocab_size.
Source: mc-BEiT (arXiv 2203.15371); lixiaotong97/mc-BEiT@37489a1 engine_for_pretraining.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_probs(token_logits: Tensor, tau: float) -> Tensor:
    """Probabilities p = softmax(z / tau), (B, L, V), of logits z (B, V, h, w) or (B, V, L).

    tau = 0 is the limit, one-hot at the best code: BEiT's single choice.
    """
    logits = at_least_fp32(token_logits).flatten(2).transpose(1, 2)
    if tau == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1)
    return (logits / tau).softmax(dim=-1)


def affinity(feats: Tensor, tau_affinity: float = 1.0) -> Tensor:
    """W = softmax(cos(f, f) / tau_affinity), (B, L, L), of feats f (B, L, D); rows sum to 1."""
    directions = F.normalize(at_least_fp32(feats), dim=-1)
    return (directions @ directions.transpose(1, 2) / tau_affinity).softmax(dim=-1)


def refine(probs: Tensor, affinity: Tensor, omega: float) -> Tensor:
    """Blend probs p (B, L, V) with those of similar patches: omega * W p + (1 - omega) * p."""
    return omega * (affinity @ probs) + (1 - omega) * probs


def multi_choice_targets(
    token_logits: Tensor,
    feats: Tensor,
    *,
    tau: float = 4.0,
    omega: float = 0.2,
    tau_affinity: float = 1.0,
    detach_affinity: bool = False,
) -> Tensor:
    """Refined multi-choice targets (B, L, V) of all patches, masked or not; rows sum to 1.

    The gradient flows through W to the student's feats (B, L, D), class token removed, as in the
    authors' code, unless `detach_affinity`.
    """
    weights = affinity(feats.detach() if detach_affinity else feats, tau_affinity)
    return refine(soft_probs(token_logits, tau), weights, omega)


def tau_at(epoch: int, tau: float, tau_start: float, warmup_epochs: int = 30) -> float:
    """Temperature at an absolute epoch: linear warm-up from tau_start, then constant.

    The authors' schedule counts from the epoch where training (re)starts and fails on runs shorter
    than the warm-up.
    """
    progress = min(1.0, epoch / (warmup_epochs - 1)) if warmup_epochs > 1 else 1.0
    return tau_start + (tau - tau_start) * progress


def at_least_fp32(x: Tensor) -> Tensor:
    """Upcast half precision, which cannot represent an 8192-way probability vector."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
