"""Codebook training: initial codes, usage statistics, dead codes."""

import math

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn

USED_SHARE = 0.1  # a code is in use above this fraction of its fair share of the tokens


class CodeUsage(nn.Module):
    """Moving average of the histogram of codes over all ranks, kept in the state dict.

    It spans 50 iterations, or as many as an evenly used code needs to be picked 50 times, so that
    no code is out of use by chance. New and restarted codes cannot be dead within that span.
    """

    def __init__(self, n_embed: int):
        super().__init__()
        self.register_buffer('histogram', torch.zeros(n_embed))  # sums to less than 1 at first
        self.register_buffer('grace', torch.ones(n_embed))  # remaining fraction of that span
        self.register_buffer('restarted', torch.zeros((), dtype=torch.long))  # total

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Add the counts (V,) of one iteration, summed over all ranks."""
        total = counts.sum()
        rate = (total / (50 * len(counts))).clamp(max=0.02)
        self.histogram.lerp_(counts / total, rate)
        self.grace.sub_(rate)

    def in_use(self) -> Tensor:
        """Return a bool (V,): codes with more than a tenth of their fair share."""
        shares = self.histogram / self.histogram.sum().clamp_min(1e-12)
        return shares > USED_SHARE / len(shares)

    def dead(self) -> Tensor:
        """Return the ids (K,) of codes that are not in use and whose grace is over."""
        return (~self.in_use() & (self.grace < 1e-3)).nonzero().flatten()

    @torch.no_grad()
    def restart(self, dead: Tensor) -> None:
        """Renew the grace of the codes `dead` (K,)."""
        self.grace[dead] = 1
        self.restarted += len(dead)

    def logs(self) -> dict[str, Tensor]:
        """Return the fraction of codes in use, the perplexity and the number of restarts."""
        return dict(
            codebook_usage=self.in_use().float().mean(),
            perplexity=perplexity(self.histogram),
            codes_restarted=self.restarted.float(),
        )


def perplexity(counts: Tensor) -> Tensor:
    """Return the effective number of codes: exp of the entropy of their counts or shares (V,).

    Integer counts are evaluated in fp64.
    """
    counts = counts if counts.is_floating_point() else counts.double()
    return torch.special.entr(counts / counts.sum().clamp_min(1e-12)).sum().exp()


def count_codes(ids: Tensor, n_embed: int) -> Tensor:
    """Count the ids, of any shape, on all ranks: float (V,)."""
    counts = torch.bincount(ids.flatten(), minlength=n_embed).float()
    all_reduce(counts)
    return counts


def as_vectors(latents: Tensor) -> Tensor:
    """Return latents (B, D, h, w) as vectors (B * h * w, D) without gradient."""
    return latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def draw(vectors: Tensor, count: int) -> Tensor:
    """Draw `count` vectors from rank 0's, the same on all ranks; repeat only if there are fewer."""
    rounds = math.ceil(count / len(vectors))
    order = [torch.randperm(len(vectors), device=vectors.device) for _ in range(rounds)]
    drawn = vectors[torch.cat(order)[:count]]
    broadcast(drawn)
    return drawn


def kmeans(vectors: Tensor, num_codes: int, rounds: int = 10) -> Tensor:
    """Cluster vectors (N, D) into centers (num_codes, D) by Lloyd's algorithm.

    Empty clusters are redrawn. All ranks get the centers of rank 0.
    """

    def redraw(count: int) -> Tensor:
        return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]

    centers = redraw(num_codes)
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centers).argmin(1) for part in vectors.split(8192)])
        counts = torch.bincount(nearest, minlength=num_codes)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        means = sums / counts.clamp_min(1).unsqueeze(1)
        centers = torch.where(counts.unsqueeze(1) > 0, means, redraw(num_codes))
    broadcast(centers)
    return centers


def scale_for_entropy(logits: Tensor, share: float) -> float:
    """Find the factor at which softmax(factor * logits (N, V)) has mean entropy share * ln V."""
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        entropy = torch.special.entr((middle * logits).softmax(dim=1)).sum(dim=1).mean()
        low, high = (middle, high) if entropy > share * math.log(logits.shape[1]) else (low, middle)
    return middle
