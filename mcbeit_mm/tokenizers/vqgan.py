"""The VQGANs of taming-transformers, which differ in their quantizers."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
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
            self.encoder = Encoder(config)
            self.decoder = Decoder(config)
        except TypeError as error:
            raise ValueError(f'Invalid ddconfig {dict(ddconfig)}: {error}') from error
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


class EMAVQGAN(VQGAN):
    """VQGAN with nearest-neighbor codes, ``taming.models.vqgan.EMAVQ``.

    The logits are negative squared distances, so the nearest code is the most likely. The authors'
    wrapper returns positive distances, which makes the farthest code the most likely.
    """

    target = 'taming.models.vqgan.EMAVQ'

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__(ddconfig, n_embed, embed_dim)
        codes, counts = torch.randn(n_embed, embed_dim), torch.zeros(n_embed)
        # weight is embed_avg / smoothed cluster_size; none of them has a gradient.
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


@MODELS.register_module()
class GumbelVQGANTokenizer(VQGANTokenizer, GumbelVQGAN):
    """Frozen Gumbel VQGAN, for example the released vqgan_gumbel_f8 with 8192 codes."""


@MODELS.register_module()
class EMAVQGANTokenizer(VQGANTokenizer, EMAVQGAN):
    """Frozen VQGAN with nearest-neighbor codes."""


def stride_of(ddconfig: Mapping[str, Any]) -> int:
    """Return the number of pixels per token along each side."""
    return 2 ** (len(ddconfig['ch_mult']) - 1)
