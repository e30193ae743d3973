"""The full-size tokenizer: as the authors run it, as the config does, and in half precision."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Case, Fact, fast_bf16
from benchmarks.plain_step import PlainTokenizer, sizes_of_tokenizer
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
from mcbeit_mm.tokenizers.base import PRECISIONS, Tokenizer


def cases(device: str, quick: bool) -> list[Case]:
    """Views of 112 pixels to logits over 8192 codes; random weights take the same time."""
    batch = 2 if quick else 128 if device == 'cuda' else 8
    sides = ('plain', 'ours') + ('ours, bf16',) * (quick or fast_bf16(device))
    if device == 'cuda':
        sides += ('ours, fp16', 'ours, bf16 compiled')
    return [
        Case(
            f'tokenizer, f8 of 8192 codes, B={batch}, 112 px',
            build,
            dict(batch=batch, quick=quick),
            sides=sides,
            items=batch,
        )
    ]


def build(side: str, device: str, batch: int, quick: bool) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    kind = PlainTokenizer if side == 'plain' else GumbelVQGANTokenizer
    tokenizer = kind(**sizes_of_tokenizer(quick)).to(device)
    tokenizer.precision = next((p for p in PRECISIONS if p in side), 'fp32')
    tokenizer.compiled = 'compiled' in side
    views = torch.rand(batch, 3, 112, 112, device=device)
    return lambda: tokenizer(views)


def facts(device: str, quick: bool) -> list[Fact]:
    """What half precision does to the targets, with random weights, where it is no slower.

    docs/benchmark.md has the figures of a trained tokenizer.
    """
    if not (quick or fast_bf16(device)):
        return []
    torch.manual_seed(0)
    tokenizer = GumbelVQGANTokenizer(**sizes_of_tokenizer(quick)).to(device)
    views = torch.rand(2, 3, 112, 112, device=device)
    return [*difference(tokenizer, views, 'random weights and views')]


def difference(tokenizer: Tokenizer, views: Tensor, how: str, tau: float = 4.0) -> list[Fact]:
    """KL of the targets to those in fp32 and share of other best codes, per precision."""
    logits = {}
    for precision in PRECISIONS:
        tokenizer.precision = precision
        logits[precision] = tokenizer(views).flatten(2).double()
    tokenizer.precision = 'fp32'
    exact = (logits['fp32'] / tau).log_softmax(1)
    found = []
    for precision in PRECISIONS[1:]:
        other = (logits[precision] / tau).log_softmax(1)
        kl = (exact.exp() * (exact - other)).sum(1).mean().item()
        changed = (logits[precision].argmax(1) != logits['fp32'].argmax(1)).double().mean().item()
        found += [
            Fact(f'tokenizer in {precision}, KL of targets', f'{kl:.3g}', 'nats', how),
            Fact(f'tokenizer in {precision}, other best code', f'{changed:.3%}', '', how),
        ]
    return found
