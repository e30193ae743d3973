"""The loss: plain equations for all tokens against the fused one on masked rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Case, fast_bf16
from benchmarks.plain import plain_loss
from mcbeit_mm.losses import multi_choice_loss

TYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def cases(device: str, quick: bool) -> list[Case]:
    """Time at a batch size that suits the machine, memory at a large one."""
    if quick:
        return [case(device, 2, 'fp32', grid=4, vocab_size=64, dims=32)]
    kinds = ('fp32', 'bf16') if fast_bf16(device) else ('fp32',)
    batches = [(128 if device == 'cuda' else 8, kind) for kind in kinds]
    if device == 'cpu':
        batches.append((64, 'fp32'))
    return [case(device, *batch, grid=14, vocab_size=8192, dims=768) for batch in batches]


def case(device: str, batch: int, kind: str, grid: int, vocab_size: int, dims: int) -> Case:
    return Case(
        f'loss, B={batch} N={grid**2} V={vocab_size}, {kind}',
        build,
        dict(batch=batch, kind=kind, grid=grid, vocab_size=vocab_size, dims=dims),
        items=batch,
        goal=0.7 if device == 'cuda' else 0.95,
        memory_goal=0.1 if batch > 8 else None,
        dtype=TYPES[kind],
        rounds=1 if (device, batch) == ('cpu', 64) else None,
    )


def build(
    side: str, device: str, batch: int, kind: str, grid: int, vocab_size: int, dims: int
) -> Callable[[], Tensor]:
    """Forward and backward to features and layer; half precision by autocast."""
    torch.manual_seed(0)
    plain = side == 'plain'
    feats = torch.randn(batch, grid**2, dims, device=device, requires_grad=True)
    weight = (torch.randn(vocab_size, dims, device=device) * 0.02).requires_grad_()
    bias = torch.zeros(vocab_size, device=device, requires_grad=True)
    token_logits = 4 * torch.randn(batch, vocab_size, grid, grid, device=device)
    if not plain:  # as the tokenizers return them
        token_logits = token_logits.to(memory_format=torch.channels_last)
    mask = torch.rand(batch, grid**2).argsort(1) < int(0.75 * grid**2)
    mask = mask.to(device) if plain else mask
    loss_of = plain_loss if plain else multi_choice_loss

    def run() -> Tensor:
        feats.grad = weight.grad = bias.grad = None
        with torch.autocast(device, TYPES[kind], enabled=kind != 'fp32'):
            loss = loss_of(feats, weight, bias, token_logits, mask)
        loss.backward()
        return loss.detach()

    return run
