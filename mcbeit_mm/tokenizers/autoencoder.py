"""Convolutional encoder and decoder shared by the VQGAN tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two pre-activated 3x3 convolutions with a shortcut: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, groups: int):
        super().__init__()
        self.norm1 = _norm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + proj_out(attention(norm(x)))``, logits scaled by C^-0.5."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Stride-2 3x3 convolution, padded on the right and bottom only: halves H and W."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor 2x upsampling and a 3x3 convolution: doubles H and W."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


@dataclass(frozen=True)
class DDConfig:
    """Sizes of encoder and decoder, the ``ddconfig`` of taming-transformers.

    Attention is used at the levels whose nominal size, ``resolution`` halved once per level, is in
    ``attn_resolutions``, whatever the actual image size. ``num_groups`` is 32 upstream;
    ``double_z`` is for KL autoencoders and has no effect.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = False
    dropout: float = 0.0
    num_groups: int = 32


class Mid(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, config: DDConfig):
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.block_1 = ResnetBlock(channels, channels, config.dropout, config.num_groups)
        self.attn_1 = AttnBlock(channels, config.num_groups)
        self.block_2 = ResnetBlock(channels, channels, config.dropout, config.num_groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of level i (0: full resolution), each optionally followed by attention.

    The encoder assigns a ``downsample`` and the decoder an ``upsample``; parameter names are
    those of taming-transformers.
    """

    def __init__(self, config: DDConfig, i: int, in_channels: int, num_blocks: int):
        super().__init__()
        self.channels = config.ch * config.ch_mult[i]
        self.block = nn.ModuleList(
            ResnetBlock(width, self.channels, config.dropout, config.num_groups)
            for width in [in_channels] + [self.channels] * (num_blocks - 1)
        )
        with_attn = config.resolution >> i in config.attn_resolutions
        self.attn = nn.ModuleList(
            AttnBlock(self.channels, config.num_groups) for _ in self.block if with_attn
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), before the change of resolution."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) -> latents (B, z_channels, H/f, W/f), f = 2^(levels - 1).

    Follows ``taming.modules.diffusionmodules.model`` (CompVis/taming-transformers), with its
    parameter names.
    """

    def __init__(self, config: DDConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels, num_levels = config.ch, len(config.ch_mult)
        for i in range(num_levels):
            level = Level(config, i, channels, config.num_res_blocks)
            channels = level.channels
            level.downsample = Downsample(channels) if i + 1 < num_levels else nn.Identity()
            self.down.append(level)
        self.mid = Mid(config)
        self.norm_out = _norm(config.num_groups, channels)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images normalized to [-1, 1]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level.downsample(level(x))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) -> images (B, out_ch, f*h, f*w); see :class:`Encoder`."""

    def __init__(self, config: DDConfig):
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Mid(config)
        levels = []
        for i in reversed(range(len(config.ch_mult))):
            level = Level(config, i, channels, config.num_res_blocks + 1)
            channels = level.channels
            level.upsample = Upsample(channels) if i > 0 else nn.Identity()
            levels.insert(0, level)  # up.i counts from the full resolution, like down.i
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(config.num_groups, channels)
        self.conv_out = nn.Conv2d(channels, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode to images, nominally in [-1, 1] (not clipped)."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level.upsample(level(x))
        return self.conv_out(F.silu(self.norm_out(x)))
