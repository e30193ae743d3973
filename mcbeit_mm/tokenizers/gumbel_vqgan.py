"""Gumbel VQGAN, the tokenizer of mc-BEiT: the trainable network and the frozen tokenizer."""

import os
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import read_checkpoint, state_dict_of
from .autoencoder import Decoder, Encoder
from .base import Tokenizer, embed_tokens
from .release import load_weights, locate


class GumbelVQGAN(nn.Module):
    """VQGAN whose codes are chosen by a classifier over the codebook (Gumbel-softmax).

    Follows ``taming.models.vqgan.GumbelVQ`` (CompVis/taming-transformers), with its
    parameter names and without its sampling: what is drawn is up to the caller.

    Args:
        ddconfig: keyword arguments of ``autoencoder.Encoder`` and ``Decoder``.
        n_embed: number of codes V.
        embed_dim: length of a code.

    Raises:
        ValueError: ``ddconfig`` lacks an entry, has an unknown one, or asks for ``double_z``.
    """

    def __init__(self, ddconfig: dict[str, Any], n_embed: int, embed_dim: int):
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
        self.quantize = nn.ModuleDict(
            {'proj': nn.Conv2d(embed_dim, n_embed, 1), 'embed': nn.Embedding(n_embed, embed_dim)}
        )
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.vocab_size = n_embed
        self.stride = 2 ** (len(ddconfig['ch_mult']) - 1)

    def encode_latents(self, x: Tensor) -> Tensor:
        """Return latents (B, embed_dim, H/stride, W/stride) of images in [-1, 1]."""
        return self.quant_conv(self.encoder(x))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of latents (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(latents))

    def encode(self, x: Tensor) -> Tensor:
        """Return token_logits (B, V, H/stride, W/stride) of images (B, 3, H, W) in [-1, 1]."""
        return self.quantize['proj'](self.encode_latents(x))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of ids (B, h, w) or probs (B, V, h, w)."""
        return self.decode_latents(embed_tokens(tokens, self.quantize['embed'].weight))


@MODELS.register_module()
class GumbelVQGANTokenizer(GumbelVQGAN, Tokenizer):
    """Frozen Gumbel VQGAN, such as the released vqgan_gumbel_f8 with 8192 codes.

    Args:
        ddconfig, n_embed, embed_dim: sizes as for :class:`GumbelVQGAN`; read from
            ``model.yaml`` when ``checkpoint`` is a folder.
        checkpoint: released folder (``model.yaml`` and ``last.ckpt``) or weight file. Without
            it the weights are random.

    Raises:
        FileNotFoundError: no such file or folder, or a part of the folder is missing.
        ValueError: sizes are missing or contradictory, or the weights do not fit them.
    """

    def __init__(
        self,
        ddconfig: dict[str, Any] | None = None,
        n_embed: int | None = None,
        embed_dim: int | None = None,
        checkpoint: str | os.PathLike | None = None,
    ):
        sizes = {'ddconfig': ddconfig, 'n_embed': n_embed, 'embed_dim': embed_dim}
        file, sizes = locate(checkpoint, sizes)
        super().__init__(**sizes)
        if file is None:
            print_log(f'{type(self).__name__}: no checkpoint, random weights', 'current')
        elif not load_weights(self, state_dict_of(read_checkpoint(file)), file):
            self.decoder = self.post_quant_conv = None
        self.freeze(file)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of ids (B, h, w) or probs (B, V, h, w)."""
        if self.decoder is None:
            raise ValueError(f'{self.weights_file} holds no decoder weights: it can only tokenize')
        return super().decode_tokens(tokens)
