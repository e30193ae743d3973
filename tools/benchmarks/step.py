"""A pretraining step of ViT-B with its tokenizer: forward, backward, clipping, AdamW."""

from collections.abc import Callable

import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from benchmarks.measure import Case
from benchmarks.plain_step import beit_v1, cache_targets, mcbeit


def cases(device: str, quick: bool) -> list[Case]:
    """On CUDA the student runs under bf16 autocast."""
    cuda = device == 'cuda'
    batch = 2 if quick else 128 if cuda else 4
    sides = ('plain', 'mmpretrain BEiT v1', 'ours, cached targets', 'ours')
    if quick:
        sides = (sides[0], *sides[2:])
    elif cuda:
        sides = (*sides, 'ours without bias', 'ours, half tokenizer, compiled')
    return [
        Case(
            f'pretraining step, ViT-B/16 224 with tokenizer, B={batch}',
            build,
            dict(batch=batch, quick=quick),
            sides=sides,
            items=batch,
            goal=0.5 if cuda else 0.88,
            dtype=torch.bfloat16 if cuda else torch.float32,
        )
    ]


def build(side: str, device: str, batch: int, quick: bool) -> Callable[[], Tensor]:
    """One step on fixed random inputs with the config's optimizer."""
    torch.manual_seed(0)
    model = (beit_v1() if 'BEiT v1' in side else mcbeit(side, quick)).to(device).train()
    settings = dict(lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **settings, fused=side.startswith('ours') or None)
    inputs = [
        torch.randn(batch, 3, 224, 224, device=device),
        torch.rand(batch, 3, 112, 112, device=device),
    ]
    if 'cached' in side:
        inputs[1] = cache_targets(model, inputs[1], quick)
    masks = (torch.rand(batch, 196).argsort(1) < 147).view(batch, 14, 14)
    masks = masks.to(device) if 'BEiT v1' in side else masks
    samples = [DataSample(mask=mask) for mask in masks]

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            loss = model.loss(inputs, samples)['loss']
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        return loss.detach()

    return run
