"""Soft cross-entropy of a linear layer against refined targets, a few images at a time.

With A = omega W + (1 - omega) on the masked rows, targets t = A p and logits l, a patch costs
log-sum-exp(l) - <t, l>; the gradient is softmax(l) - A p for l and -<p_j, l_i> for A_ij. All of it
is known as soon as a chunk's logits are, so the gradients are computed there and then, and the
(patches, vocab_size) tensors of one chunk are all that ever exist.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of (images, patches, vocab_size) per chunk. CPU: one image of 196 x 8192 was fastest of
# 1, 2 and 4 (0.564, 0.563, 0.606 s for eight, one Xeon core). CUDA: 5 images, 735 masked rows of a
# matrix product, 32 MiB per fp32 copy; chosen for the memory, not by a measurement.
CHUNK_ELEMENTS = {'cpu': 2**21, 'cuda': 2**23}
# Probabilities are multiplied by this where they enter fp16 products: 1 / 8192 is then 1 / 2, and
# 1 stays below fp16's largest number.
PROBS_SCALE = 2.0**12
FP16_MAX = torch.finfo(torch.float16).max


class MaskedPlaces(NamedTuple):
    """Where the masked patches are: `order` (B, M) positions, ascending, filled up by visible ones
    for images with fewer than M; `valid` (B, M) marks the masked, None where all are.
    """

    order: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, mask: Tensor, device: torch.device) -> 'MaskedPlaces':
        """Find them in a mask (B, L); one on the CPU spares a CUDA device a wait."""
        mask = mask.cpu()
        counts = mask.sum(dim=1)
        most = int(counts.max()) if len(counts) else 0
        order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        valid = None
        if not bool((counts == most).all()):
            valid = _to(torch.arange(most) < counts.unsqueeze(1), device)
        return cls(_to(order, device), valid)

    def part(self, images: slice) -> 'MaskedPlaces':
        """Those of some images."""
        return MaskedPlaces(self.order[images], None if self.valid is None else self.valid[images])

    def rows(self, x: Tensor) -> Tensor:
        """Rows (B, M, C) of x (B, L, C)."""
        if not x.requires_grad:  # whole rows are copied; backward, gather is the simpler one
            return x[torch.arange(len(x), device=x.device).unsqueeze(1), self.order]
        return x.gather(1, self.order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def only_masked(self, x: Tensor) -> Tensor:
        """Zero, in place, what only fills up in x (B, M, C)."""
        return x if self.valid is None else x.mul_(self.valid.unsqueeze(-1))


class Precision(NamedTuple):
    """Types of numbers: `compute` of products with the weight, `mix` of those with probabilities,
    `exact` of all else.
    """

    compute: torch.dtype
    mix: torch.dtype
    exact: torch.dtype

    @classmethod
    def of(cls, feats: Tensor, weight: Tensor) -> 'Precision':
        """Follow autocast, else the inputs; on CUDA half precision takes fp16 to mix: 11 bits."""
        kind = feats.device.type
        compute = torch.promote_types(feats.dtype, weight.dtype)
        if torch.is_autocast_enabled(kind):
            compute = torch.get_autocast_dtype(kind)
        exact = torch.promote_types(compute, torch.float32)
        half = compute != exact and kind == 'cuda'
        return cls(compute, torch.float16 if half else exact, exact)


class Plan(NamedTuple):
    """How to compute: `probs_of` gives the probabilities (b, L, V) of some images, `affinity_of` W
    (b, L, L) of their features, None for omega = 0; `compiled` fuses by torch.compile what is not a
    matrix product.
    """

    probs_of: Callable[[slice], Tensor]
    affinity_of: Callable[[Tensor], Tensor] | None
    places: MaskedPlaces
    omega: float
    precision: Precision
    images_per_chunk: int
    with_grad: bool
    compiled: bool


class Gradients(NamedTuple):
    """Of the summed loss, for the inputs of the same names."""

    feats: Tensor
    weight: Tensor
    bias: Tensor


class FusedSums(torch.autograd.Function):
    """Sums over masked patches of the loss, of the targets' entropy and of hits, all scalars.

    Inputs: feats (B, L, D), weight (V, D), bias (V,), a plan. Only the loss has a gradient, which
    cannot be differentiated again. Call it with autocast disabled: `plan.precision` decides.
    """

    @staticmethod
    def forward(
        ctx, feats: Tensor, weight: Tensor, bias: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go through the images in chunks; compute the gradients, too, if the plan says so."""
        inputs = (feats, weight, bias)
        compute, _, exact = plan.precision
        grads = None
        if plan.with_grad:
            grads = Gradients(*(torch.zeros_like(x, dtype=exact) for x in inputs))
        linear = weight.to(compute), bias.to(compute)
        sums = torch.zeros(3, dtype=exact, device=feats.device)
        num_images = len(feats) if plan.places.order.shape[1] else 0
        for start in range(0, num_images, plan.images_per_chunk):
            images = slice(start, start + plan.images_per_chunk)
            sums += _chunk(images, feats[images], *linear, plan, grads)
        ctx.save_for_backward(*(grads or ()))
        ctx.dtypes = [x.dtype for x in inputs]
        loss, entropy, hits = sums.unbind()
        ctx.mark_non_differentiable(entropy, hits)
        return loss, entropy, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass left."""
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((x * grad).to(dtype) for x, dtype in saved), None


def _chunk(
    images: slice, feats: Tensor, weight: Tensor, bias: Tensor, plan: Plan, grads: Gradients | None
) -> Tensor:
    """Sums (3,) over some images; their share of `grads` is written or added."""
    _, mix, exact = plan.precision
    places, probs = plan.places.part(images), plan.probs_of(images).to(exact)
    feats, mixed = feats.detach().to(exact).requires_grad_(grads is not None), None
    with torch.set_grad_enabled(grads is not None):
        parts = [places.rows(feats)]
        if plan.affinity_of is not None:
            parts.append(places.rows(plan.affinity_of(feats)))
    rows, *weights = (part.detach() for part in parts)
    rows = rows.to(weight.dtype)
    logits = F.linear(rows, weight, bias).to(exact)
    if weights:
        mixed = _product(weights[0], probs, mix)
    pointwise = _compiled_pointwise() if plan.compiled else _pointwise
    sums, inner, residual = pointwise(logits, places.rows(probs), mixed, plan.omega)
    if grads is not None:
        by_rows = _linear_gradients(grads, places.only_masked(residual), rows, weight)
        upstream = [by_rows.to(exact)]
        if parts[-1] is not parts[0] and parts[-1].requires_grad:
            # <t, l> cancels in the affinity's softmax; without it the product rounds less.
            likeness = _product(logits - inner, probs.transpose(1, 2), mix)
            upstream.append(places.only_masked(likeness.mul_(-plan.omega)))
        outputs = parts[: len(upstream)]
        (grads.feats[images],) = torch.autograd.grad(outputs, feats, upstream)
    if places.valid is not None:
        sums = sums * places.valid
    return sums.flatten(1).sum(1)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Batched product whose second factor are probabilities, in `dtype`."""
    if left.dtype == dtype:
        return left @ right
    return (left.to(dtype) @ (right * PROBS_SCALE).to(dtype)).to(left.dtype) / PROBS_SCALE


def _pointwise(
    logits: Tensor, own: Tensor, mixed: Tensor | None, omega: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, entropy and hit of each patch (3, b, m), <t, l> (b, m, 1), softmax(l) - t (b, m, V)."""
    targets = own if mixed is None else torch.add((1 - omega) * own, mixed, alpha=omega)
    log_sum = logits.logsumexp(-1, keepdim=True)
    inner = (targets * logits).sum(-1, keepdim=True)
    # Not xlogy, which is three times slower on a CPU.
    logs = targets.clamp_min(torch.finfo(targets.dtype).tiny).log()
    entropy = -(targets * logs).sum(-1, keepdim=True)
    # Twice amax instead of argmax, which is eight times slower on a CPU.
    best = own == own.amax(-1, keepdim=True)
    guess = logits.masked_fill(~best, -torch.inf).amax(-1, keepdim=True)
    hits = (guess == logits.amax(-1, keepdim=True)).to(logits.dtype)
    sums = torch.stack((log_sum - inner, entropy, hits)).squeeze(-1)
    return sums, inner, (logits - log_sum).exp() - targets


@cache
def _compiled_pointwise() -> Callable:
    # Dynamic: the number of masked patches may differ from chunk to chunk.
    return torch.compile(_pointwise, dynamic=True)


def _linear_gradients(grads: Gradients, residual: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Add to the gradients of weight and bias; return that of the rows."""
    shape = rows.shape
    residual, rows = residual.flatten(0, 1), rows.flatten(0, 1)
    grads.bias.add_(residual.sum(0))
    scale = 1.0
    if weight.dtype == torch.float16:
        # The most that cannot overflow: absolute residuals of a row sum to 2 or less.
        bound = torch.maximum(
            residual.abs().amax() * rows.abs().amax().float() * len(rows),
            2 * weight.abs().amax().float(),
        )
        scale = (FP16_MAX / bound).clamp(max=2.0**14)
        residual = residual * scale
    residual = residual.to(weight.dtype)
    by_rows = residual @ weight
    if weight.dtype == grads.weight.dtype:  # no second tensor of the weight's size
        grads.weight.addmm_(residual.T, rows)
        return by_rows.view(shape)
    by_weight = residual.T @ rows
    if weight.dtype == torch.float16:
        by_rows, by_weight = by_rows.float() / scale, by_weight.float() / scale
    grads.weight.add_(by_weight)
    return by_rows.view(shape)


def _to(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else x.to(device)
