"""Train a VQGAN with nearest-neighbor codes updated by moving averages of the latents."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.registry import MODELS
from torch import Tensor

from ..base import embed_tokens
from ..vqgan import EMAVQGAN
from .codebook import as_vectors, count_codes
from .trainer import Quantized, VQGANTrainer


@MODELS.register_module()
class EMAVQGANTrainer(VQGANTrainer):
    """Train an EMAVQGAN; inputs are images (B, 3, H, W) in [0, 1].

    The codebook never has a gradient, so the optimizer and its weight decay do not touch it.
    Defaults are those of taming's EMAVectorQuantizer.

    Args:
        decay: decay of the moving averages.
        eps: Laplace smoothing of the moving counts.
        beta: weight of the commitment loss, the mean squared distance of latents to their codes.
        kwargs: arguments of `VQGANTrainer`.
    """

    network = EMAVQGAN

    def __init__(
        self, *, decay: float = 0.99, eps: float = 1e-5, beta: float = 0.25, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.decay, self.eps, self.beta = decay, eps, beta
        if self.warmup_iters == 0:
            # Upstream starts at zero, so the means of codes that the first batch does not pick
            # are divided by eps, which moves them far away.
            self.vqgan.quantize.embedding['cluster_size'].fill_(1)

    def quantize(self, latents: Tensor) -> Quantized:
        """Pick the nearest codes of fp32 latents (B, D, h, w); in training, update the codes."""
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
        """Update the moving averages with vectors (N, D) and their code ids (N,), on all ranks."""
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
        """Initialize with codes (V, D), each as if picked once per step."""
        self.vqgan.quantize.embedding['cluster_size'].fill_(1)
        self.restart_codes(torch.arange(len(codes), device=codes.device), codes)

    @torch.no_grad()
    def restart_codes(self, ids: Tensor, codes: Tensor) -> None:
        """Move the codes `ids` (K,) to `codes` (K, D); their moving count becomes the mean."""
        book = self.vqgan.quantize.embedding
        size = book['cluster_size'].mean()
        book['weight'][ids] = codes
        book['cluster_size'][ids] = size
        book['embed_avg'][ids] = size * codes
