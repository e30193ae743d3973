"""A plain discrete VAE, the `customized` tokenizer of BEiT's and the authors' code."""

import os
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..fileio.pins import check_pin, split_pin
from ..weights.reading import read_checkpoint, state_dict_of
from .base import Tokenizer, embed_tokens
from .release import load_weights

FILE = 'pytorch_model.bin'
DECODER = ('decoder.', 'codebook.')


class ResBlock(nn.Module):
    """Three convolutions and a shortcut: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + net(x)``."""
        return x + self.net(x)


def _trunk(
    conv: type[nn.Module], in_channels: int, hidden_dim: int, num_layers: int, out_channels: int
) -> nn.Sequential:
    """Stack convolutions ``conv`` that halve or double H and W, and a 1x1 convolution."""
    layers: list[nn.Module] = []
    for i in range(num_layers):
        channels = hidden_dim if i else in_channels
        change = conv(channels, hidden_dim, kernel_size=4, stride=2, padding=1)
        layers += [nn.Sequential(change, nn.ReLU()), ResBlock(hidden_dim)]
    return nn.Sequential(*layers, nn.Conv2d(hidden_dim, out_channels, 1))


@MODELS.register_module()
class DiscreteVAETokenizer(Tokenizer):
    """Frozen discrete VAE in the manner of DALLE-pytorch, 2^num_layers pixels per token.

    Follows ``DiscreteVAE`` of modeling_discrete_vae.py (lixiaotong97/mc-BEiT@37489a1), with its
    parameter names.

    Args:
        num_tokens: number of tokens V.
        codebook_dim: length of a code.
        checkpoint: ``pytorch_model.bin``, with the state dict under ``weights``, the folder it
            lies in, or a bare state dict. Without it the weights are random.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without ``pytorch_model.bin``.
        ValueError: the weights cannot be read, or do not fit the sizes.
    """

    def __init__(
        self,
        num_tokens: int = 8192,
        codebook_dim: int = 512,
        num_layers: int = 3,
        hidden_dim: int = 256,
        checkpoint: str | os.PathLike | None = None,
    ):
        super().__init__()
        file = _find_weights(checkpoint)
        geometry = self.geometry(num_tokens=num_tokens, num_layers=num_layers)
        self.vocab_size, self.stride = geometry['vocab_size'], geometry['stride']
        self.encoder = _trunk(nn.Conv2d, 3, hidden_dim, num_layers, num_tokens)
        self.codebook = nn.Embedding(num_tokens, codebook_dim)
        self.decoder = _trunk(nn.ConvTranspose2d, codebook_dim, hidden_dim, num_layers, 3)
        if file is None:
            print_log(f'{type(self).__name__}: no checkpoint, random weights', 'current')
        else:
            content = read_checkpoint(file)
            if isinstance(content.get('weights'), dict):
                content = content['weights']
            sizes = ('num_tokens', 'codebook_dim', 'num_layers', 'hidden_dim')
            if not load_weights(self, state_dict_of(content), file, DECODER, sizes):
                self.decoder = self.codebook = None
        self.freeze(file)

    @classmethod
    def geometry(
        cls,
        num_tokens: int = 8192,
        num_layers: int = 3,
        checkpoint: str | os.PathLike | None = None,
        **config: Any,
    ) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments, without reading weights."""
        _find_weights(checkpoint)
        return {'vocab_size': num_tokens, 'stride': 2**num_layers}

    def encode(self, x: Tensor) -> Tensor:
        """Return token_logits (B, V, H/stride, W/stride) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(x)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images, nominally in [-1, 1], of ids (B, h, w) or probs (B, V, h, w)."""
        if self.decoder is None:
            raise ValueError(f'{self.weights_file} holds no decoder weights: it can only tokenize')
        return self.decoder(embed_tokens(tokens, self.codebook.weight))


def _find_weights(checkpoint: str | os.PathLike | None) -> Path | None:
    if checkpoint is None:
        return None
    name, pin = split_pin(checkpoint)
    checkpoint = Path(name)
    file = checkpoint / FILE if checkpoint.is_dir() else checkpoint
    if not file.is_file():
        raise FileNotFoundError(
            f'No tokenizer at {checkpoint}: expected {FILE}, which holds a state dict under the '
            f'key weights, the folder it lies in, or another weight file'
        )
    return check_pin(file, pin)
