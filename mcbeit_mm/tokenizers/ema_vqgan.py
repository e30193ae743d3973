"""VQGAN with nearest-neighbour codes that follow a moving average of the latents."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .vqgan import VQGAN, VQGANTokenizer


class EMACodebook(nn.Module):
    """The codes and the statistics they are means of; the optimizer leaves all three alone.

    ``embedding.weight`` (V, D) is ``embed_avg`` (V, D) over the smoothed ``cluster_size`` (V,).
    """

    def __init__(self, n_embed: int, embed_dim: int):
        super().__init__()
        codes = torch.randn(n_embed, embed_dim)
        self.embedding = nn.ParameterDict(
            {
                'weight': nn.Parameter(codes, requires_grad=False),
                'cluster_size': nn.Parameter(torch.zeros(n_embed), requires_grad=False),
                'embed_avg': nn.Parameter(codes.clone(), requires_grad=False),
            }
        )


class EMAVQGAN(VQGAN):
    """VQGAN whose codes are the nearest ones; ``taming.models.vqgan.EMAVQ``.

    The logits are minus the squared distances, so that the nearest code is the likeliest. The
    authors' wrapper returns plus the distances, for which the farthest one is. Arguments and
    errors as for :class:`VQGAN`.
    """

    target = 'taming.models.vqgan.EMAVQ'

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__(ddconfig, n_embed, embed_dim)
        self.quantize = EMACodebook(n_embed, embed_dim)

    @property
    def codebook(self) -> Tensor:
        """The codes (V, D)."""
        return self.quantize.embedding['weight']

    def token_logits(self, latents: Tensor) -> Tensor:
        """Return -|z - e|^2, (B, V, h, w), of latents z (B, D, h, w) and codes e."""
        z_e = torch.einsum('bdhw,vd->bvhw', latents, self.codebook)
        e_e = self.codebook.square().sum(dim=1)[:, None, None]
        return 2 * z_e - e_e - latents.square().sum(dim=1, keepdim=True)


@MODELS.register_module()
class EMAVQGANTokenizer(VQGANTokenizer, EMAVQGAN):
    """Frozen VQGAN with a moving-average codebook and nearest-neighbour codes."""
