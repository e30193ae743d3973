"""Gumbel VQGAN, the tokenizer of mc-BEiT."""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from .vqgan import VQGAN, VQGANTokenizer


class GumbelVQGAN(VQGAN):
    """VQGAN with a classifier over the codes, ``taming.models.vqgan.GumbelVQ``.

    Sampling (Gumbel-softmax) is left to the caller.
    """

    target = 'taming.models.vqgan.GumbelVQ'

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__(ddconfig, n_embed, embed_dim)
        self.quantize = nn.ModuleDict(
            {'proj': nn.Conv2d(embed_dim, n_embed, 1), 'embed': nn.Embedding(n_embed, embed_dim)}
        )

    @property
    def codebook(self) -> Tensor:
        """Codes (V, D)."""
        return self.quantize['embed'].weight

    def token_logits(self, latents: Tensor) -> Tensor:
        """Return the classifier's logits (B, V, h, w) of latents (B, D, h, w)."""
        return self.quantize['proj'](latents)


@MODELS.register_module()
class GumbelVQGANTokenizer(VQGANTokenizer, GumbelVQGAN):
    """Frozen Gumbel VQGAN, for example the released vqgan_gumbel_f8 with 8192 codes."""
