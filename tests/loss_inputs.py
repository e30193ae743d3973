"""Inputs of the loss, and its terms with gradients on either path."""

import torch

from mcbeit_mm.losses import MultiChoiceLoss


def loss_inputs(grid, dims, vocab_size, counts, dtype=torch.float64, channels_last=False):
    """Inputs whose logits resemble a trained head's; `counts` masked patches per image."""
    batch, patches = len(counts), grid[0] * grid[1]
    torch.manual_seed(batch * vocab_size + dims)
    feats = torch.randn(batch, patches, dims, dtype=torch.float64)
    weight = torch.randn(vocab_size, dims, dtype=torch.float64) * 0.1
    logits = 4 * torch.randn(batch, vocab_size, *grid, dtype=torch.float64)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    mask = torch.zeros(batch, patches, dtype=torch.bool)
    for row, count in zip(mask, counts, strict=True):
        row[torch.randperm(patches)[:count]] = True
    bias = torch.randn(vocab_size, dtype=torch.float64) * 0.1
    params = [x.to(dtype).requires_grad_() for x in (feats, weight, bias)]
    return *params, logits.to(dtype), mask


def with_gradients(inputs, **settings):
    """Terms of the loss by name, and the gradients of feats, weight and bias."""
    terms = MultiChoiceLoss(**settings).terms(*inputs)
    grads = torch.autograd.grad(terms['loss'], inputs[:3])
    return {name: value.detach().double() for name, value in terms.items()}, list(grads)


def relative_norm(got, expected):
    """Norm of the difference over the norm of the expected tensor."""
    return float((got - expected).norm() / expected.norm())
