"""Train a VQGAN whose codes are the nearest ones and follow a moving average of the latents."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor

from ..base import embed_tokens
from ..ema_vqgan import EMAVQGAN
from .codebook import as_vectors, count_codes
from .trainer import Quantized, VQGANTrainer


@MODELS.register_module()
class EMAVQGANTrainer(VQGANTrainer):
    """An EMAVQGAN in training; inputs are images (B, 3, H, W) in [0, 1].

    The optimizer leaves the codebook alone, weight decay included: it never has a gradient.

    Args:
        ddconfig, n_embed, embed_dim, warmup_iters, total_iters: as for `VQGANTrainer`.
        decay: of the moving averages.
        eps: what Laplace smoothing adds to the moving counts of the codes.
        beta: weight of the commitment loss, the mean squared distance of latents to their codes.
            The defaults of all three are those of taming's EMAVectorQuantizer.
        kwargs: further arguments of `VQGANTrainer`.
    """

    network = EMAVQGAN

    def __init__(
        self,
        ddconfig: dict[str, Any],
        n_embed: int,
        embed_dim: int,
        warmup_iters: int,
        total_iters: int,
        decay: float = 0.99,
        eps: float = 1e-5,
        beta: float = 0.25,
        **kwargs: Any,
    ):
        super().__init__(ddconfig, n_embed, embed_dim, warmup_iters, total_iters, **kwargs)
        self.decay, self.eps, self.beta = decay, eps, beta
        if warmup_iters == 0:
            # Upstream starts at zero, which throws codes that the first batch does not pick far
            # away: their means are divided by eps.
            self.vqgan.quantize.embedding['cluster_size'].fill_(1)

    def quantize(self, latents: Tensor) -> Quantized:
        """Take the nearest codes of fp32 latents (B, D, h, w); in training, move the codes."""
        ids = self.vqgan.token_logits(latents.detach()).argmax(dim=1)
        codes = embed_tokens(ids, self.vqgan.codebook)
        commit = self.beta * F.mse_loss(latents, codes)
        if self.training:
            self._update(as_vectors(latents), ids.flatten())
        return Quantized(
            latents + (codes - latents).detach(), ids, commit, dict(commit=commit.detach())
        )

    @torch.no_grad()
    def _update(self, vectors: Tensor, ids: Tensor) -> None:
        """Move the codes towards the means of their vectors (N, D), ids (N,), on all ranks."""
        book = self.vqgan.quantize.embedding
        sums = torch.zeros_like(book['embed_avg']).index_add_(0, ids, vectors)
        all_reduce(sums)
        book['cluster_size'].lerp_(count_codes(ids, len(sums)), 1 - self.decay)
        book['embed_avg'].lerp_(sums, 1 - self.decay)
        total = book['cluster_size'].sum()
        smoothed = (book['cluster_size'] + self.eps) / (total + len(sums) * self.eps) * total
        book['weight'].copy_(book['embed_avg'] / smoothed.unsqueeze(1))

    @torch.no_grad()
    def place_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """Start with codes (V, D), each as if one vector had been next to it in each step."""
        everything = torch.arange(len(codes), device=codes.device)
        self.vqgan.quantize.embedding['cluster_size'].fill_(1)
        self.restart_codes(everything, codes)

    @torch.no_grad()
    def restart_codes(self, ids: Tensor, codes: Tensor) -> None:
        """Put the codes `ids` (K,) on (K, D), with a moving count that is the mean of all."""
        book = self.vqgan.quantize.embedding
        size = book['cluster_size'].mean()
        book['weight'][ids] = codes
        book['cluster_size'][ids] = size
        book['embed_avg'][ids] = size * codes
