"""The loss of `losses.plain_sums`, a few images at a time and without (B, L, V) tensors.

With A = omega W + (1 - omega) I on the masked rows, targets t = A p and logits l, the loss of a
patch is log-sum-exp(l) - <t, l>; its gradient is softmax(l) - A p for l and -<p_j, l_i> for A_ij.
The forward pass has all of these, so it computes the gradients too, and only the (patches,
vocab_size) tensors of one chunk of images are ever alive.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..targets import affinity, soft_probs

# Elements of (images, patches, vocab_size) per chunk. CPU: one image of 196 x 8192 was fastest of
# 1, 2 and 4 (0.564, 0.563, 0.606 s for eight, one Xeon core). CUDA: 5 images, 735 masked rows of a
# matrix product, 32 MiB per fp32 copy; chosen for memory, not measured.
CHUNK_ELEMENTS = {'cpu': 2**21, 'cuda': 2**23}
# Scale of probabilities in fp16 products: maps 1/8192 to 1/2 and keeps 1 far from overflow.
PROBS_SCALE = 2.0**12
FP16_MAX = torch.finfo(torch.float16).max


class MaskedPlaces(NamedTuple):
    """Positions of masked patches: `order` (B, M), ascending, padded with visible ones in images
    with fewer than M; `valid` (B, M) is True for masked ones, None if all are.
    """

    order: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, mask: Tensor, device: torch.device) -> 'MaskedPlaces':
        """Find the masked patches of a mask (B, L); a CPU mask avoids a host-device sync."""
        mask = mask.cpu()
        counts = mask.sum(dim=1)
        most = int(counts.max()) if len(counts) else 0
        order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        valid = None
        if not bool((counts == most).all()):
            valid = _to(torch.arange(most) < counts.unsqueeze(1), device)
        return cls(_to(order, device), valid)

    def part(self, images: slice) -> 'MaskedPlaces':
        """Select images."""
        return MaskedPlaces(self.order[images], None if self.valid is None else self.valid[images])

    def rows(self, x: Tensor) -> Tensor:
        """Rows (B, M, C) of x (B, L, C)."""
        if not x.requires_grad:  # faster than gather, but not in the backward pass
            return x[torch.arange(len(x), device=x.device).unsqueeze(1), self.order]
        return x.gather(1, self.order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def only_masked(self, x: Tensor) -> Tensor:
        """Zero the padding of x (B, M, C) in place."""
        return x if self.valid is None else x.mul_(self.valid.unsqueeze(-1))


class Precision(NamedTuple):
    """Dtypes: `compute` of products with the weight, `mix` of products with probabilities, `exact`
    of everything else.
    """

    compute: torch.dtype
    mix: torch.dtype
    exact: torch.dtype

    @classmethod
    def of(cls, feats: Tensor, weight: Tensor) -> 'Precision':
        """Follow autocast, else the inputs."""
        kind = feats.device.type
        compute = torch.promote_types(feats.dtype, weight.dtype)
        if torch.is_autocast_enabled(kind):
            compute = torch.get_autocast_dtype(kind)
        exact = torch.promote_types(compute, torch.float32)
        half = compute != exact and kind == 'cuda'  # fp16 has 3 more bits than bf16
        return cls(compute, torch.float16 if half else exact, exact)


class Plan(NamedTuple):
    """Everything that `FusedSums` needs besides the inputs that get a gradient."""

    token_logits: Tensor
    places: MaskedPlaces
    tau: float
    omega: float
    tau_affinity: float
    detach_affinity: bool
    precision: Precision
    with_grad: bool
    compiled: bool  # fuse the pointwise part by torch.compile


def fused_sums(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor,
    token_logits: Tensor,
    mask: Tensor,
    *,
    compiled: bool = False,
    **settings: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `losses.plain_sums`, with its `settings`; the loss cannot be differentiated twice."""
    plan = Plan(
        token_logits,
        MaskedPlaces.of(mask, feats.device),
        precision=Precision.of(feats, weight),
        with_grad=torch.is_grad_enabled(),
        compiled=compiled,
        **settings,
    )
    with torch.autocast(feats.device.type, enabled=False):
        return FusedSums.apply(feats, weight, bias, plan)


class FusedSums(torch.autograd.Function):
    """Chunked sums of loss, target entropy and hits; gradients come with the forward pass."""

    @staticmethod
    def forward(
        ctx, feats: Tensor, weight: Tensor, bias: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loop over chunks of images."""
        inputs = (feats, weight, bias)
        compute, _, exact = plan.precision
        grads = [torch.zeros_like(x, dtype=exact) for x in inputs if plan.with_grad]
        linear = weight.to(compute), bias.to(compute)
        sums = torch.zeros(3, dtype=exact, device=feats.device)
        elements = CHUNK_ELEMENTS.get(feats.device.type, CHUNK_ELEMENTS['cpu'])
        step = max(1, elements // (feats.shape[1] * len(weight)))
        num_images = len(feats) if plan.places.order.shape[1] else 0
        for start in range(0, num_images, step):
            images = slice(start, start + step)
            sums += _chunk(images, feats[images], *linear, plan, grads)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [x.dtype for x in inputs]
        loss, entropy, hits = sums.unbind()
        ctx.mark_non_differentiable(entropy, hits)
        return loss, entropy, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass."""
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((x * grad).to(dtype) for x, dtype in saved), None


def _chunk(
    images: slice, feats: Tensor, weight: Tensor, bias: Tensor, plan: Plan, grads: list[Tensor]
) -> Tensor:
    """Return the sums (3,) of a chunk of images and add its share to `grads`, unless empty."""
    _, mix, exact = plan.precision
    places = plan.places.part(images)
    probs = soft_probs(plan.token_logits[images], plan.tau).to(exact)
    feats, mixed = feats.detach().to(exact).requires_grad_(plan.with_grad), None
    with torch.set_grad_enabled(plan.with_grad):
        parts = [places.rows(feats)]
        if plan.omega > 0:
            source = feats.detach() if plan.detach_affinity else feats
            parts.append(places.rows(affinity(source, plan.tau_affinity)))
    rows, *weights = (part.detach() for part in parts)
    rows = rows.to(weight.dtype)
    logits = F.linear(rows, weight, bias).to(exact)
    if weights:
        mixed = _product(weights[0], probs, mix)
    pointwise = _compiled_pointwise() if plan.compiled else _pointwise
    sums, inner, residual = pointwise(logits, places.rows(probs), mixed, plan.omega)
    if plan.with_grad:
        rows_grad = _linear_gradients(*grads[1:], places.only_masked(residual), rows, weight)
        upstream = [rows_grad.to(exact)]
        if parts[-1] is not parts[0] and parts[-1].requires_grad:
            # <t, l> cancels in the affinity's softmax; subtracting it reduces rounding.
            affinity_grad = _product(logits - inner, probs.transpose(1, 2), mix).mul_(-plan.omega)
            upstream.append(places.only_masked(affinity_grad))
        outputs = parts[: len(upstream)]
        (grads[0][images],) = torch.autograd.grad(outputs, feats, upstream)
    if places.valid is not None:
        sums = sums * places.valid
    return sums.flatten(1).sum(1)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Batched matrix product, in `dtype`, whose right factor holds probabilities."""
    if left.dtype == dtype:
        return left @ right
    return (left.to(dtype) @ (right * PROBS_SCALE).to(dtype)).to(left.dtype) / PROBS_SCALE


def _pointwise(
    logits: Tensor, probs: Tensor, mixed: Tensor | None, omega: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, entropy and hit per patch (3, b, m), <t, l> (b, m, 1) and softmax(l) - t (b, m, V)."""
    targets = probs if mixed is None else torch.add((1 - omega) * probs, mixed, alpha=omega)
    log_sum = logits.logsumexp(-1, keepdim=True)
    inner = (targets * logits).sum(-1, keepdim=True)
    # xlogy is three times slower on a CPU.
    logs = targets.clamp_min(torch.finfo(targets.dtype).tiny).log()
    entropy = -(targets * logs).sum(-1, keepdim=True)
    # argmax is eight times slower on a CPU than two calls of amax.
    best = probs == probs.amax(-1, keepdim=True)
    guess = logits.masked_fill(~best, -torch.inf).amax(-1, keepdim=True)
    hits = (guess == logits.amax(-1, keepdim=True)).to(logits.dtype)
    sums = torch.stack((log_sum - inner, entropy, hits)).squeeze(-1)
    return sums, inner, (logits - log_sum).exp() - targets


@cache
def _compiled_pointwise() -> Callable:
    # The number of masked patches varies between chunks.
    return torch.compile(_pointwise, dynamic=True)


def _linear_gradients(
    weight_grad: Tensor, bias_grad: Tensor, residual: Tensor, rows: Tensor, weight: Tensor
) -> Tensor:
    """Add to the gradients of weight and bias; return the gradient of the rows."""
    shape = rows.shape
    residual, rows = residual.flatten(0, 1), rows.flatten(0, 1)
    bias_grad.add_(residual.sum(0))
    scale = 1.0
    if weight.dtype == torch.float16:
        # Largest scale that cannot overflow: the absolute residuals of a row sum to at most 2.
        bound = torch.maximum(
            residual.abs().amax() * rows.abs().amax().float() * len(rows),
            2 * weight.abs().amax().float(),
        )
        scale = (FP16_MAX / bound).clamp(max=2.0**14)
        residual = residual * scale
    residual = residual.to(weight.dtype)
    rows_grad = residual @ weight
    if weight.dtype == weight_grad.dtype:  # saves a temporary of the weight's size
        weight_grad.addmm_(residual.T, rows)
        return rows_grad.view(shape)
    update = residual.T @ rows
    if weight.dtype == torch.float16:
        rows_grad, update = rows_grad.float() / scale, update.float() / scale
    weight_grad.add_(update)
    return rows_grad.view(shape)


def _to(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else x.to(device)
