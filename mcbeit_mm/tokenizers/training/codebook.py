"""Codes in training: where they are placed, how much each is used, which ones are dead."""

import math

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn

USED_SHARE = 0.1  # a code is in use when it holds over a tenth of its fair share of the tokens


class CodeUsage(nn.Module):
    """Moving histogram of the codes picked on all ranks, in the state dict.

    The average runs over 50 iterations, or more where a fair code would be picked less than 50
    times in them, so that chance alone leaves no code out of use. For as long, codes that are
    fresh or restarted do not count as dead.
    """

    def __init__(self, n_embed: int):
        super().__init__()
        self.register_buffer('histogram', torch.zeros(n_embed))  # from zero: sums to below 1
        self.register_buffer('grace', torch.ones(n_embed))  # what is left of the time to prove
        self.register_buffer('restarted', torch.zeros((), dtype=torch.long))  # so far

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Take in how often each code was picked, (V,), by all ranks together."""
        total = counts.sum()
        rate = (total / (50 * len(counts))).clamp(max=0.02)
        self.histogram.lerp_(counts / total, rate)
        self.grace.sub_(rate)

    def shares(self) -> Tensor:
        """Frequencies (V,) of the codes, which sum to 1."""
        return self.histogram / self.histogram.sum().clamp_min(1e-12)

    def in_use(self) -> Tensor:
        """Bool (V,): the codes that hold over a tenth of their fair share."""
        return self.shares() > USED_SHARE / len(self.histogram)

    def dead(self) -> Tensor:
        """Ids (K,) of codes that are not in use and had the time to be."""
        return (~self.in_use() & (self.grace < 1e-3)).nonzero().flatten()

    @torch.no_grad()
    def restart(self, dead: Tensor) -> None:
        """Give codes, ids (K,), time to prove themselves."""
        self.grace[dead] = 1
        self.restarted += len(dead)

    def logs(self) -> dict[str, Tensor]:
        """Share of the codes in use, their perplexity, and restarts since the beginning."""
        return dict(
            codebook_usage=self.in_use().float().mean(),
            perplexity=perplexity(self.shares()),
            codes_restarted=self.restarted.float(),
        )


def perplexity(histogram: Tensor) -> Tensor:
    """Effective number of codes: exp of the entropy of frequencies (V,) that sum to 1."""
    return torch.special.entr(histogram).sum().exp()


def count_codes(ids: Tensor, n_embed: int) -> Tensor:
    """Float (V,): how often each code occurs in the ids, of any shape, of all ranks."""
    counts = torch.bincount(ids.flatten(), minlength=n_embed).float()
    all_reduce(counts)
    return counts


def as_vectors(latents: Tensor) -> Tensor:
    """Return latents (B, D, h, w) as vectors (B * h * w, D) without gradient."""
    return latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def draw(vectors: Tensor, count: int) -> Tensor:
    """Return `count` random vectors of the first rank, on all ranks; repeated only if too few."""
    rounds = math.ceil(count / len(vectors))
    order = [torch.randperm(len(vectors), device=vectors.device) for _ in range(rounds)]
    drawn = vectors[torch.cat(order)[:count]]
    broadcast(drawn)
    return drawn


def kmeans(vectors: Tensor, num_codes: int, rounds: int = 10) -> Tensor:
    """Lloyd's algorithm: (N, D) vectors -> (num_codes, D) centres; empty ones are redrawn.

    Each rank clusters its own vectors; all get the centres of the first one.
    """

    def redraw(count: int) -> Tensor:
        return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]

    centres = redraw(num_codes)
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in vectors.split(8192)])
        counts = torch.bincount(nearest, minlength=num_codes)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        means = sums / counts.clamp_min(1).unsqueeze(1)
        centres = torch.where(counts.unsqueeze(1) > 0, means, redraw(num_codes))
    broadcast(centres)
    return centres


def scale_for_entropy(logits: Tensor, share: float) -> float:
    """Factor that gives softmax(factor * logits), (N, V), a mean entropy of share * ln V nats."""
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        entropy = torch.special.entr((middle * logits).softmax(dim=1)).sum(dim=1).mean()
        low, high = (middle, high) if entropy > share * math.log(logits.shape[1]) else (low, middle)
    return middle
