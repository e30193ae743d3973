"""The full-size tokenizer: as the authors run it, as the config does, and in half precision."""

from collections.abc import Callable

import torch
from mmengine.config import Config
from torch import Tensor

from benchmarks.measure import ROOT, Case, fast_bf16
from benchmarks.plain import PlainTokenizer
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
from mcbeit_mm.tokenizers.base import PRECISIONS


def cases(device: str, quick: bool) -> list[Case]:
    """Views of 112 pixels to logits over 8192 codes, with random weights."""
    batch = 2 if quick else 128 if device == 'cuda' else 8
    sides = ('plain', 'ours') + ('ours, bf16',) * (quick or fast_bf16(device))
    if device == 'cuda':
        sides += ('ours, fp16', 'ours, bf16 compiled')
    name = f'tokenizer, f8 of 8192 codes, B={batch}, 112 px'
    return [Case(name, build, dict(batch=batch, quick=quick), sides, batch)]


def build(side: str, device: str, batch: int, quick: bool) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    tokenizer = random_tokenizer(side == 'plain', quick).to(device)
    tokenizer.precision = next((p for p in PRECISIONS if p in side), 'fp32')
    tokenizer.compiled = 'compiled' in side
    views = torch.rand(batch, 3, 112, 112, device=device)
    return lambda: tokenizer(views)


def random_tokenizer(plain: bool, quick: bool) -> GumbelVQGANTokenizer:
    """The released tokenizer, or a small one, with random weights."""
    model = Config.fromfile(ROOT / 'configs/_base_/models/vqgan_f8-8192.py').model
    ddconfig, kind = dict(model.ddconfig), PlainTokenizer if plain else GumbelVQGANTokenizer
    if quick:
        ddconfig.update(ch=32)
    return kind(ddconfig=ddconfig, n_embed=64 if quick else 8192, embed_dim=model.embed_dim)
