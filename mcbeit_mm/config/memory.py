"""How much memory a training step needs on a GPU, estimated on any machine.

Counted: weights, gradients, AdamW's two moments, and every tensor that the forward pass keeps for
the backward pass. Not counted: what kernels take for a moment, and the allocator's fragments.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..layers import attention
from .synthetic import training_batch

GIB = 2**30
PRODUCTS = {
    getattr(torch.ops.aten, name)
    for name in ('mm', 'bmm', 'addmm', 'addmm_', 'baddbmm', 'convolution')
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step on one device."""

    weights: int
    gradients: int
    moments: int
    fixed: int  # kept for the backward pass whatever the batch, such as position biases
    per_image: int

    def total(self, batch_size: int) -> int:
        """Sum for a batch of so many images."""
        return (
            self.weights + self.gradients + self.moments + self.fixed + batch_size * self.per_image
        )


def estimate_memory(model: nn.Module, size: tuple[int, int], half: bool = True) -> MemoryEstimate:
    """Estimate for a model that `synthetic.training_batch` knows and inputs of (H, W) pixels.

    Two and three images are passed forward (batch norm refuses one); the difference is what an
    image costs. `half` counts activations in two bytes, as fp16 or bf16 autocast keep them.
    """
    weights = list(model.parameters()) + list(model.buffers())
    if hasattr(model, 'tokenizer'):
        weights += list(model.tokenizer.parameters())
    trained = sum(_size(p) for p in model.parameters() if p.requires_grad)
    two, three = (_step_bytes(model, n, size, half) for n in (2, 3))
    return MemoryEstimate(
        weights=sum(map(_size, weights)),
        gradients=trained,
        moments=2 * trained,
        fixed=max(0, 3 * two - 2 * three),
        per_image=three - two,
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _step_bytes(model: nn.Module, batch_size: int, size: tuple[int, int], half: bool) -> int:
    """Bytes kept at the worst moment: checkpointing brings back one block at a time."""
    model.train()
    batch = training_batch(model, batch_size, size)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    if not getattr(getattr(model, 'backbone', None), 'with_cp', False):
        return _kept_bytes(lambda: model(**batch, mode='loss'), own, half)
    block, arguments = model.backbone.blocks[0], []
    hook = block.register_forward_pre_hook(lambda module, args: arguments.append(args))
    kept = _kept_bytes(lambda: model(**batch, mode='loss'), own, half)
    hook.remove()
    return kept + _kept_bytes(lambda: block(*arguments[0]), own, half)


def _kept_bytes(run: Callable[[], object], own: set[int], half: bool) -> int:
    """Bytes of all storages but `own` that `run` keeps for its backward pass."""
    kept: dict[int, Tensor] = {}  # by storage: views of one tensor count once

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast('cpu', torch.bfloat16, enabled=half),
        _lean_attention(),
        _RandomProducts(),
    ):
        result = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result  # only now may the graph and its tensors go
    return total


class _RandomProducts(TorchDispatchMode):
    """Puts random numbers in place of matrix products and convolutions.

    No value matters but that detectors' proposals lie everywhere, and CPUs without bfloat16
    would compute for an hour. Autograd and autocast come before, so the same tensors are kept.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs or {})
        if func.overloadpacket is torch.ops.aten.addmm_:
            return args[0]
        like = func(*tree_map_only(Tensor, lambda x: x.to('meta'), args), **kwargs or {})
        return torch.empty_like(like, device=args[0].device).normal_()


class _LeanAttention(torch.autograd.Function):
    """Attention that keeps what the GPU's fused kernels keep: not the attention matrix."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.zeros_like(query)  # the values do not matter, the graph is never run
        ctx.save_for_backward(query, key, value, bias, out, out.new_empty(out.shape[:-1]).float())
        return out


@contextmanager
def _lean_attention() -> Iterator[None]:
    functional = torch.nn.functional
    original, devices = functional.scaled_dot_product_attention, attention.STEP_BY_STEP
    checkpoint = attention.checkpoint

    def lean(query, key, value, attn_mask=None, **kwargs):
        dtype = query.dtype
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
        query, key, value = (t.to(dtype) for t in (query, key, value))
        return _LeanAttention.apply(query, key, value, attn_mask)

    def lean_band(band, query, key, value, *args, **kwargs):  # hooks do not see what it keeps
        return _LeanAttention.apply(query, key, value, None)

    functional.scaled_dot_product_attention, attention.STEP_BY_STEP = lean, ()
    attention.checkpoint = lean_band
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, attention.STEP_BY_STEP = original, devices
        attention.checkpoint = checkpoint
