"""Base classes of the VQGANs, which differ in their quantizers."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .autoencoder import DDConfig, Decoder, Encoder
from .base import Tokenizer, embed_tokens
from .release import HINT, WEIGHTS, find_sizes


class VQGAN(nn.Module):
    """Autoencoder with a codebook.

    Subclasses add the module `quantize`, the codes `codebook` (V, D) and `token_logits`, which
    maps latents (B, D, h, w) to logits (B, V, h, w).

    Follows ``taming.models.vqgan`` (CompVis/taming-transformers), with its parameter names.

    Args:
        ddconfig: fields of :class:`~.autoencoder.DDConfig`.
        n_embed: number of codes V.
        embed_dim: dimension D of a code.

    Raises:
        ValueError: ``ddconfig`` has missing or unknown entries.
    """

    target: str  # class in taming-transformers, for model.yaml

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__()
        try:
            config = DDConfig(**ddconfig)
        except TypeError as error:
            raise ValueError(f'Invalid ddconfig {dict(ddconfig)}: {error}') from error
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)
        self.vocab_size = n_embed
        self.stride = stride_of(ddconfig)

    def encode_latents(self, x: Tensor) -> Tensor:
        """Return latents (B, embed_dim, H/stride, W/stride) of images in [-1, 1]."""
        return self.quant_conv(self.encoder(x))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of latents (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(latents))

    def encode(self, x: Tensor) -> Tensor:
        """Return token_logits (B, V, H/stride, W/stride) of images (B, 3, H, W) in [-1, 1]."""
        return self.token_logits(self.encode_latents(x))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of ids (B, h, w) or probs (B, V, h, w)."""
        return self.decode_latents(embed_tokens(tokens, self.codebook))


class VQGANTokenizer(VQGAN, Tokenizer):
    """Frozen VQGAN; tokenizers derive from it and from their network, in this order.

    Args:
        ddconfig, n_embed, embed_dim: as for :class:`VQGAN`; read from ``model.yaml`` if
            ``checkpoint`` is a folder.
        checkpoint: release folder (``model.yaml`` and ``last.ckpt``) or weight file. See
            :func:`~.release.find_sizes` and :meth:`~.base.Tokenizer.load`.
    """

    weight_names, hint = WEIGHTS, HINT
    decoder_parts = ('decoder', 'post_quant_conv')

    def __init__(
        self,
        ddconfig: Mapping[str, Any] | None = None,
        n_embed: int | None = None,
        embed_dim: int | None = None,
        checkpoint: str | os.PathLike | None = None,
    ):
        sizes = {'ddconfig': ddconfig, 'n_embed': n_embed, 'embed_dim': embed_dim}
        super().__init__(**find_sizes(checkpoint, sizes, self.target))
        self.load(checkpoint)

    @classmethod
    def geometry(cls, checkpoint: str | os.PathLike | None = None, **sizes: Any) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments without reading weights."""
        sizes = find_sizes(checkpoint, sizes, cls.target)
        return {'vocab_size': sizes['n_embed'], 'stride': stride_of(sizes['ddconfig'])}


def stride_of(ddconfig: Mapping[str, Any]) -> int:
    """Return the number of pixels per token along each side."""
    return 2 ** (len(ddconfig['ch_mult']) - 1)
