"""Plain discrete VAE, the `customized` tokenizer of the BEiT and mc-BEiT code."""

import os
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Tokenizer, embed_tokens
from .release import find_weights


class ResBlock(nn.Module):
    """Residual block of three convolutions: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()

        def conv(kernel: int) -> nn.Module:
            return nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

        self.net = nn.Sequential(conv(3), nn.ReLU(), conv(3), nn.ReLU(), conv(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + net(x)``."""
        return x + self.net(x)


def _trunk(
    conv: type[nn.Module], in_channels: int, hidden_dim: int, num_layers: int, out_channels: int
) -> nn.Sequential:
    """Build layers of ``conv``, which halve or double H and W, and a 1x1 convolution."""
    layers: list[nn.Module] = []
    for i in range(num_layers):
        channels = hidden_dim if i else in_channels
        change = conv(channels, hidden_dim, kernel_size=4, stride=2, padding=1)
        layers += [nn.Sequential(change, nn.ReLU()), ResBlock(hidden_dim)]
    return nn.Sequential(*layers, nn.Conv2d(hidden_dim, out_channels, 1))


@MODELS.register_module()
class DiscreteVAETokenizer(Tokenizer):
    """Frozen discrete VAE like that of DALLE-pytorch, 2^num_layers pixels per token.

    Follows ``DiscreteVAE`` of modeling_discrete_vae.py (lixiaotong97/mc-BEiT@37489a1), with its
    parameter names.

    Args:
        num_tokens: number of tokens V.
        codebook_dim: dimension of a code.
        checkpoint: ``pytorch_model.bin`` (state dict under ``weights``), its folder, or a bare
            state dict. See :meth:`~.base.Tokenizer.load`.
    """

    weight_names = ('pytorch_model.bin',)
    decoder_parts = ('decoder', 'codebook')
    hint = "expected pytorch_model.bin (state dict under 'weights'), its folder, or a weight file"

    def __init__(
        self,
        num_tokens: int = 8192,
        codebook_dim: int = 512,
        num_layers: int = 3,
        hidden_dim: int = 256,
        checkpoint: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.vocab_size, self.stride = num_tokens, 2**num_layers
        self.encoder = _trunk(nn.Conv2d, 3, hidden_dim, num_layers, num_tokens)
        self.codebook = nn.Embedding(num_tokens, codebook_dim)
        self.decoder = _trunk(nn.ConvTranspose2d, codebook_dim, hidden_dim, num_layers, 3)
        self.load(checkpoint)

    @classmethod
    def geometry(
        cls,
        num_tokens: int = 8192,
        num_layers: int = 3,
        checkpoint: str | os.PathLike | None = None,
        **others: Any,
    ) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments; looks for the weights only."""
        find_weights(checkpoint, cls.weight_names, cls.hint)
        return {'vocab_size': num_tokens, 'stride': 2**num_layers}

    def encode(self, x: Tensor) -> Tensor:
        """Return token_logits (B, V, H/stride, W/stride) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(x)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of ids (B, h, w) or probs (B, V, h, w)."""
        return self.decoder(embed_tokens(tokens, self.codebook.weight))
