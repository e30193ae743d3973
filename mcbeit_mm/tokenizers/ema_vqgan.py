"""VQGAN with nearest-neighbor codes, updated by moving averages."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .vqgan import VQGAN, VQGANTokenizer


class EMAVQGAN(VQGAN):
    """VQGAN with nearest-neighbor codes, ``taming.models.vqgan.EMAVQ``.

    The logits are minus the squared distances, so the nearest code is the likeliest. The authors'
    wrapper returns plus the distances, which makes the farthest code the likeliest.
    """

    target = 'taming.models.vqgan.EMAVQ'

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__(ddconfig, n_embed, embed_dim)
        codes, counts = torch.randn(n_embed, embed_dim), torch.zeros(n_embed)
        # weight is embed_avg over the smoothed cluster_size; none of them has a gradient.
        tensors = dict(weight=codes, cluster_size=counts, embed_avg=codes.clone())
        book = nn.ParameterDict(tensors).requires_grad_(False)
        self.quantize = nn.ModuleDict({'embedding': book})

    @property
    def codebook(self) -> Tensor:
        """Codes (V, D)."""
        return self.quantize.embedding['weight']

    def token_logits(self, latents: Tensor) -> Tensor:
        """Return -|z - e|^2, (B, V, h, w), of latents z (B, D, h, w) and codes e."""
        z_e = torch.einsum('bdhw,vd->bvhw', latents, self.codebook)
        e_e = self.codebook.square().sum(dim=1)[:, None, None]
        return 2 * z_e - e_e - latents.square().sum(dim=1, keepdim=True)


@MODELS.register_module()
class EMAVQGANTokenizer(VQGANTokenizer, EMAVQGAN):
    """Frozen VQGAN with nearest-neighbor codes."""
