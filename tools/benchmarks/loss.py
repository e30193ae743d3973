"""The loss: plain equations for all tokens against the fused one on masked rows."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, fast_bf16
from mcbeit_mm.losses import multi_choice_loss
from mcbeit_mm.targets import multi_choice_targets

TYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def cases(device: str, quick: bool) -> list[Case]:
    """Time at a batch size that suits the machine, memory at a large one."""
    sizes = (
        dict(grid=4, vocab_size=64, dims=32) if quick else dict(grid=14, vocab_size=8192, dims=768)
    )
    kinds = ('fp32', 'bf16') if fast_bf16(device) else ('fp32',)
    batches = [(kind, 128 if device == 'cuda' else 8) for kind in kinds]
    if quick:
        batches = [('fp32', 2)]
    elif device == 'cpu':
        batches.append(('fp32', 64))
    return [
        Case(
            f'loss, B={batch} N={sizes["grid"] ** 2} V={sizes["vocab_size"]}, {kind}',
            build,
            dict(batch=batch, kind=kind, **sizes),
            items=batch,
            goal=0.7 if device == 'cuda' else 0.95,
            memory_goal=0.1 if batch > 8 else None,
            dtype=TYPES[kind],
            rounds=1 if (device, batch) == ('cpu', 64) else None,
        )
        for kind, batch in batches
    ]


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


def plain_loss(
    feats: Tensor, weight: Tensor, bias: Tensor, token_logits: Tensor, mask: Tensor
) -> Tensor:
    """The equations in the order of the paper: all tokens, then the masked ones."""
    logits = F.linear(feats, weight, bias)
    targets = multi_choice_targets(token_logits, feats)
    losses = -(targets * logits.float().log_softmax(-1)).sum(-1)
    return losses[mask].mean()
