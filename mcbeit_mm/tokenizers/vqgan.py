"""What the VQGANs share: encoder, decoder and released files; they differ in the quantizer."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..weights.reading import read_checkpoint, state_dict_of
from .autoencoder import Decoder, Encoder
from .base import Tokenizer, embed_tokens
from .release import load_weights, locate


class VQGAN(nn.Module):
    """Autoencoder around a codebook; a subclass adds `quantize`, `codebook` and `token_logits`.

    Follows ``taming.models.vqgan`` (CompVis/taming-transformers), with its parameter names.

    Args:
        ddconfig: keyword arguments of ``autoencoder.Encoder`` and ``Decoder``.
        n_embed: number of codes V.
        embed_dim: length of a code.

    Raises:
        ValueError: ``ddconfig`` lacks an entry, has an unknown one, or asks for ``double_z``.
    """

    target: str  # the class in taming-transformers, as model.yaml names it

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__()
        try:
            self.encoder = Encoder(**ddconfig)
            self.decoder = Decoder(**ddconfig)
        except TypeError as error:
            raise ValueError(f'Bad ddconfig {dict(ddconfig)}: {error}') from error
        if ddconfig.get('double_z'):
            raise ValueError('double_z belongs to KL autoencoders; a VQGAN has double_z=False')
        z_channels = ddconfig['z_channels']
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.vocab_size = n_embed
        self.stride = stride_of(ddconfig)

    @property
    def codebook(self) -> Tensor:
        """The codes (V, D)."""
        raise NotImplementedError

    def token_logits(self, latents: Tensor) -> Tensor:
        """Return logits (B, V, h, w) of latents (B, D, h, w)."""
        raise NotImplementedError

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
    """Frozen VQGAN; a tokenizer derives from it and from its network, in this order.

    Args:
        ddconfig, n_embed, embed_dim: sizes as for :class:`VQGAN`; read from ``model.yaml`` when
            ``checkpoint`` is a folder.
        checkpoint: released folder (``model.yaml`` and ``last.ckpt``) or weight file. Without
            it the weights are random.

    Raises:
        FileNotFoundError: no such file or folder, or a part of the folder is missing.
        ValueError: sizes are missing or contradictory, or the weights do not fit them.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any] | None = None,
        n_embed: int | None = None,
        embed_dim: int | None = None,
        checkpoint: str | os.PathLike | None = None,
    ):
        sizes = {'ddconfig': ddconfig, 'n_embed': n_embed, 'embed_dim': embed_dim}
        file, sizes = locate(checkpoint, sizes, self.target)
        super().__init__(**sizes)
        if file is None:
            print_log(f'{type(self).__name__}: no checkpoint, random weights', 'current')
        elif not load_weights(self, state_dict_of(read_checkpoint(file)), file):
            self.decoder = self.post_quant_conv = None
        self.freeze(file)

    @classmethod
    def geometry(cls, checkpoint: str | os.PathLike | None = None, **sizes: Any) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments, without reading weights."""
        _, sizes = locate(checkpoint, sizes, cls.target)
        return {'vocab_size': sizes['n_embed'], 'stride': stride_of(sizes['ddconfig'])}

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of ids (B, h, w) or probs (B, V, h, w)."""
        if self.decoder is None:
            raise ValueError(f'{self.weights_file} holds no decoder weights: it can only tokenize')
        return super().decode_tokens(tokens)


def stride_of(ddconfig: Mapping[str, Any]) -> int:
    """Return the pixels per token."""
    return 2 ** (len(ddconfig['ch_mult']) - 1)
