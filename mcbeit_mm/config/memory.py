"""GPU memory of a training step, estimated on any machine.

Counts weights, gradients, AdamW's two moments, and every tensor that the forward pass keeps for
the backward pass; not the kernels' work space, nor the allocator's fragmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import torch
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..layers import blocks
from ..layers.attention import BandedBias
from .launch import load_config
from .synthetic import training_batch

GIB = 2**30
PRODUCTS = {
    getattr(torch.ops.aten, name) for name in ('mm', 'bmm', 'addmm', 'baddbmm', 'convolution')
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step on one device."""

    states: int  # weights, gradients and moments
    fixed: int  # kept for the backward pass, independent of the batch, such as position biases
    per_image: int

    def total(self, batch_size: int) -> int:
        """Return the total for a batch of `batch_size` images."""
        return self.states + self.fixed + batch_size * self.per_image


def estimate_memory(model: nn.Module, size: tuple[int, int], half: bool = True) -> MemoryEstimate:
    """Estimate for a model that `synthetic.training_batch` supports and inputs of (H, W) pixels.

    The memory per image is the difference of forward passes with three and two images (batch norm
    refuses one). `half` counts activations in two bytes, as under fp16 or bf16 autocast.
    """
    weights = list(model.parameters()) + list(model.buffers())
    if hasattr(model, 'tokenizer'):
        weights += list(model.tokenizer.parameters())
    states = sum(t.nbytes * (4 if t.requires_grad else 1) for t in weights)
    two, three = (_step_bytes(model, n, size, half) for n in (2, 3))
    return MemoryEstimate(states, fixed=max(0, 3 * two - 2 * three), per_image=three - two)


def print_estimates(
    configs: Sequence[str],
    batch: int | None = None,
    size: Sequence[int] | None = None,
    cfg_options: Sequence[str] = (),
) -> None:
    """Print a table of estimates, one line per config file.

    Args:
        batch: images per GPU; default the config's.
        size: (H, W) of the input; default the backbone's.
    """
    print('    GiB   states    fixed  per image  batch  config')
    for path in configs:
        cfg = load_config(path, cfg_options)
        init_default_scope(cfg.default_scope)
        model = revert_sync_batchnorm(MODELS.build(cfg.model))  # CPUs have no SyncBN
        half = cfg.optim_wrapper.type != 'OptimWrapper'
        memory = estimate_memory(model, tuple(size or input_size(cfg.model)), half)
        images = batch or cfg.train_dataloader.batch_size
        total, states, fixed, per_image = (
            n / GIB for n in (memory.total(images), memory.states, memory.fixed, memory.per_image)
        )
        print(
            f'{total:7.1f}  {states:7.3f}  {fixed:7.3f}  {per_image:9.3f}  {images:5d}  {path}',
            flush=True,
        )


def input_size(model: ConfigDict) -> tuple[int, int]:
    """Return (H, W) in pixels of the position tables, or of a tokenizer in training."""
    if 'ddconfig' in model:
        side = model.ddconfig.resolution
    else:
        side = model.backbone.get('img_size', 224)  # MCBEiTViT's default
    return (side, side) if isinstance(side, int) else tuple(side)


def _step_bytes(model: nn.Module, batch_size: int, size: tuple[int, int], half: bool) -> int:
    """Return the bytes kept at the peak: checkpointing recomputes one block at a time."""
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
    """Return the bytes of all storages but `own` that `run` keeps for its backward pass."""
    kept: dict[int, Tensor] = {}  # by storage: views of one tensor count once

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast('cpu', torch.bfloat16, enabled=half),
        patch.object(blocks, 'attend', _attend),
        patch.object(BandedBias, 'attend', _attend_in_bands),
        _RandomProducts(),
    ):
        result = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result  # keeps the graph and its tensors alive until here
    return total


class _RandomProducts(TorchDispatchMode):
    """Replaces matrix products and convolutions by random numbers.

    Values only matter in that detectors' proposals must be spread over the image, and CPUs without
    bfloat16 would compute for an hour. Autograd and autocast act before this mode, so they keep
    the same tensors.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs or {})
        like = func(*tree_map_only(Tensor, lambda x: x.to('meta'), args), **kwargs or {})
        return torch.empty_like(like, device=args[0].device).normal_()


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps what fused GPU kernels keep, so not the attention matrix."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.zeros_like(query)  # any value will do: backward never runs
        ctx.save_for_backward(query, key, value, bias, out, out.new_empty(out.shape[:-1]).float())
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return _FusedAttention.apply(q, k, v, None if bias is None else bias.to(q.dtype))


def _attend_in_bands(bands: BandedBias, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _FusedAttention.apply(q, k, v, None)  # recomputed: no band's bias is kept
