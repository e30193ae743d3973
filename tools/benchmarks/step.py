"""A pretraining step of ViT-B with its tokenizer: forward, backward, clipping, AdamW."""

from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from benchmarks.measure import ROOT, Case
from benchmarks.plain import TINY, PlainMCBEiT, use_plain_attention
from benchmarks.tokenizer import random_tokenizer
from mcbeit_mm.cached_targets.cache import Header, encode
from mcbeit_mm.cached_targets.tokenizer import CachedTokenizer
from mcbeit_mm.mcbeit import MCBEiT


def cases(device: str, quick: bool) -> list[Case]:
    """On CUDA the student runs under bf16 autocast."""
    cuda = device == 'cuda'
    batch = 2 if quick else 128 if cuda else 4
    half = ('ours, half tokenizer, compiled',) if cuda and not quick else ()
    case = Case(
        f'pretraining step, ViT-B/16 224 with tokenizer, B={batch}',
        build,
        dict(batch=batch, quick=quick),
        sides=('plain', 'ours, cached targets', 'ours', *half),
        items=batch,
        goal=0.5 if cuda else 0.88,
        dtype=torch.bfloat16 if cuda else torch.float32,
    )
    return [case]


def build(side: str, device: str, batch: int, quick: bool) -> Callable[[], Tensor]:
    """One step on fixed random inputs with the config's optimizer."""
    torch.manual_seed(0)
    model = mcbeit(side, quick).to(device).train()
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


def mcbeit(side: str, quick: bool) -> MCBEiT:
    """The config's model with a tokenizer of random weights."""
    config = Config.fromfile(ROOT / 'configs/_base_/models/mcbeit_vit-base-p16.py').model
    plain = side == 'plain'
    tokenizer = random_tokenizer(plain, quick)
    config.update(type=PlainMCBEiT if plain else MCBEiT, target_generator=None)
    if quick:
        config.backbone.arch = TINY
        config.head.update(embed_dims=32, vocab_size=64)
    if 'half tokenizer, compiled' in side:
        config.update(tokenizer_precision='bf16', compile_tokenizer=True)
        config.backbone.compile_blocks = config.head.compile_loss = True
    config.target_generator = tokenizer
    model = MODELS.build(config)
    if plain:
        use_plain_attention(model.backbone)
    return model


def cache_targets(model: MCBEiT, views: Tensor, quick: bool) -> Tensor:
    """Replace the model's tokenizer by a cache of 256 codes, or of all (`quick`: the same loss).

    Returns the records of these views; reading them from disk is the data loader's work.
    """
    tokenizer = model.tokenizer
    grid = tuple(side // tokenizer.stride for side in views.shape[2:])
    vocab_size, tau = tokenizer.vocab_size, 4.0
    k = vocab_size if quick else 256
    with TemporaryDirectory() as folder:
        Header(vocab_size, tokenizer.stride, grid, k, tau, 0, 1, 0, {}, {}).write(folder)
        model._tokenizer[0] = CachedTokenizer(folder).to(views.device)
    return encode(tokenizer(views), k, tau)
