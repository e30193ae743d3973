"""Discrete VAE of DALL-E, the tokenizer of BEiT."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Tokenizer, embed_tokens
from .release import find_weights

EPS = 0.1  # logit_laplace_eps of dall_e/utils.py: images are in [EPS, 1 - EPS]
GROUPS = 4  # group_count of dall_e/encoder.py; the resolution changes between them
DECODER_INIT = 128  # n_init of dall_e/decoder.py
ENCODER_KERNELS = (3, 3, 3, 1)
DECODER_KERNELS = (1, 3, 3, 3)


class Conv(nn.Module):
    """Same-padded convolution with parameters w (C', C, k, k) and b (C',)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        weight = torch.randn(out_channels, in_channels, kernel, kernel)
        self.w = nn.Parameter(weight / (in_channels * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Residual block of four pre-activated convolutions: (B, C, H, W) -> (B, C', H, W).

    The inner ones have a quarter of the output channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernels: Sequence[int], gain: float):
        super().__init__()
        self.gain = gain
        same = in_channels == out_channels
        self.id_path = nn.Identity() if same else Conv(in_channels, out_channels, 1)
        widths = [in_channels] + [out_channels // 4] * 3 + [out_channels]
        layers = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f'relu_{i + 1}'] = nn.ReLU()
            layers[f'conv_{i + 1}'] = Conv(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``id_path(x) + gain * res_path(x)``."""
        return self.id_path(x) + self.gain * self.res_path(x)


class Trunk(nn.Module):
    """Convolution, four groups of blocks, 1x1 convolution; encoder and decoder alike.

    Args:
        widths: channels after the first convolution and after each group.
        kernel: kernel size of the first convolution.
        block_kernels: kernel sizes of the four convolutions of a block.
        resize: module between groups.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        out_channels: int,
        kernel: int,
        block_kernels: Sequence[int],
        n_blk_per_group: int,
        resize: nn.Module,
    ):
        super().__init__()
        self.blocks = nn.Sequential()
        self.blocks.add_module('input', Conv(in_channels, widths[0], kernel))
        gain = 1 / (GROUPS * n_blk_per_group) ** 2
        for i in range(GROUPS):
            group = nn.Sequential()
            for j in range(n_blk_per_group):
                block = Block(widths[i + (j > 0)], widths[i + 1], block_kernels, gain)
                group.add_module(f'block_{j + 1}', block)
            if i + 1 < GROUPS:
                group.add_module('resize', resize)
            self.blocks.add_module(f'group_{i + 1}', group)
        output = OrderedDict(relu=nn.ReLU(), conv=Conv(widths[-1], out_channels, 1))
        self.blocks.add_module('output', nn.Sequential(output))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.blocks(x)


@MODELS.register_module()
class DALLETokenizer(Tokenizer):
    """Frozen discrete VAE of DALL-E (arXiv 2102.12092), 8 pixels per token.

    Follows ``dall_e`` (openai/DALL-E), with its parameter names, but in fp32. Upstream, and so in
    the authors' pretraining, all convolutions but the last run in fp16 on CUDA.

    Args:
        n_hid: channels of the encoder at full resolution.
        vocab_size: number of tokens V.
        checkpoint: folder with OpenAI's ``encoder.pkl`` and, to decode, ``decoder.pkl``;
            OpenMMLab's ``dalle_encoder.pth``; or a state dict. See :meth:`~.base.Tokenizer.load`.
    """

    stride = 2 ** (GROUPS - 1)
    weight_names = ('encoder.pkl',)
    decoder_parts = ('decoder',)
    hint = (
        'download https://cdn.openai.com/dall-e/encoder.pkl and, for reconstructions, decoder.pkl '
        'from the same place into one folder, and pass that folder'
    )

    def __init__(
        self,
        n_hid: int = 256,
        n_blk_per_group: int = 2,
        vocab_size: int = 8192,
        checkpoint: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        widths = [n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid]
        self.encoder = Trunk(
            3, widths, vocab_size, 7, ENCODER_KERNELS, n_blk_per_group, nn.MaxPool2d(2)
        )
        widths = [DECODER_INIT, *widths[:0:-1]]
        up = nn.Upsample(scale_factor=2, mode='nearest')
        # 6 channels: means and log-scales of the logit-Laplace distribution; images are the means
        self.decoder = Trunk(vocab_size, widths, 6, 1, DECODER_KERNELS, n_blk_per_group, up)
        self.load(checkpoint)

    @classmethod
    def geometry(
        cls, vocab_size: int = 8192, checkpoint: str | os.PathLike | None = None, **others: Any
    ) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments; looks for the weights only."""
        find_weights(checkpoint, cls.weight_names, cls.hint)
        return {'vocab_size': vocab_size, 'stride': cls.stride}

    def read_weights(self, file: Path) -> dict[str, Tensor]:
        """Return the weights of a file; with encoder.pkl also those of decoder.pkl next to it."""
        weights = _prefixed(super().read_weights(file), 'encoder.')
        decoder = file.with_name('decoder.pkl')
        if file.name == 'encoder.pkl' and decoder.is_file():
            weights |= _prefixed(super().read_weights(decoder), 'decoder.')
        return weights

    def normalize(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [0.1, 0.9] (``map_pixels`` upstream)."""
        return (1 - 2 * EPS) * images + EPS

    def denormalize(self, x: Tensor) -> Tensor:
        """Invert :meth:`normalize`."""
        return (x - EPS) / (1 - 2 * EPS)

    def encode(self, x: Tensor) -> Tensor:
        """Return token_logits (B, V, H/8, W/8) of images (B, 3, H, W) in [0.1, 0.9]."""
        return self.encoder(x)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return images in (0, 1), nominally in [0.1, 0.9], of ids (B, h, w) or probs."""
        blocks = self.decoder.blocks
        codebook = blocks.input.w.flatten(1).t()  # a 1x1 convolution of one-hot tokens
        x = embed_tokens(tokens, codebook) + blocks.input.b[:, None, None]
        return blocks[1:](x)[:, :3].sigmoid()


def _prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f'{prefix}{k}' if k.startswith('blocks.') else k: v for k, v in weights.items()}
