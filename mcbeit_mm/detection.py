"""Image -> four feature maps for a detector: BEiT blocks with windowed and global attention.

Parameter names are those of the official mc-BEiT detection checkpoints.
Source: lixiaotong97/mc-BEiT@37489a1 detection, after MIMDet (arXiv 2204.02964).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import PatchEmbed, lecun_normal_
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers.attention import BandedBias
from .layers.blocks import arch_sizes, check_choice, init_layers, make_blocks
from .layers.offset_tables import OffsetTable, fit_pos_embed
from .layers.rel_pos import Grid
from .weights.detection_positions import fit_positions
from .weights.fitting import PretrainedMixin, adapt_on_load

# Minimum number of patches for attention in bands.
BANDED_FROM = 2048


@MODELS.register_module()
class MCBEiTDetViT(PretrainedMixin, BaseModule):
    """BEiT vision transformer with windowed attention and a four-level pyramid, for detectors.

    Images (B, 3, H, W) may have any size: sides are padded at the right and bottom to multiples of
    the patch with zeros, the mean color. The output is four maps (B, embed_dims, ., .) with 4, 2, 1
    and 1/2 cells per patch, the last rounded up: strides 4 to 32 for 16-pixel patches.

    Args:
        arch: a name or dict(embed_dims, num_layers, num_heads, feedforward_channels).
        img_size: side or (H, W) in pixels of the training images; sets the position tables' grid.
        window_size: side of the attention windows in patches; they are not shifted.
        global_blocks: four blocks with global attention, each followed by a map; None takes the
            last of each quarter.
        rel_pos: one table for all windows and a global one ('shared'), or one 'per_block'.
        layer_scale_init_value: initial gamma_1 and gamma_2; 0 disables layer scale.
        with_cp: recompute blocks in the backward pass to save memory.
    """

    fresh_parameters = ('ms_adaptor.', 'pos_embed')

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 1024,
        patch_size: int = 16,
        window_size: int = 16,
        global_blocks: Sequence[int] | None = None,
        rel_pos: str = 'shared',
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        sizes = arch_sizes(arch)
        check_choice('rel_pos', rel_pos, ('shared', 'per_block'))
        self.embed_dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self.rel_pos, self.with_cp = rel_pos, with_cp
        self.global_blocks = _four_blocks(global_blocks, self.num_layers)

        self.patch_embed = PatchEmbed(
            img_size,
            patch_size,
            embed_dim=self.embed_dims,
            output_fmt='NHWC',
            strict_img_size=False,
            dynamic_img_pad=True,
        )
        self.grid = self.patch_embed.dynamic_feat_size(self.patch_embed.img_size)
        self.window = (window_size, window_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), self.embed_dims))
        self.blocks = make_blocks(sizes, drop_path_rate, layer_scale_init_value)
        num_heads = sizes['num_heads']
        if rel_pos == 'shared':
            self.windowed_rel_pos_bias = OffsetTable(self.window, num_heads)
            self.global_rel_pos_bias = OffsetTable(self.grid, num_heads)
        else:
            self.rel_pos_bias = nn.ModuleList(
                OffsetTable(self.grid if i in self.global_blocks else self.window, num_heads)
                for i in range(self.num_layers)
            )
        self.ms_adaptor = _adaptors(self.embed_dims)
        self._initialize()
        self.register_load_state_dict_pre_hook(adapt_on_load)

    def _initialize(self) -> None:
        init_layers(self, partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02), (nn.Linear,))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                lecun_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return four maps of images (B, 3, H, W), finest first."""
        x = self.patch_embed(x)
        grid, dtype = tuple(x.shape[1:3]), x.dtype
        x = x + fit_pos_embed(self.pos_embed, self.grid, grid).view(1, *grid, -1)

        @lru_cache(maxsize=5)  # enough for shared tables: one global bias, four window shapes
        def bias(table: OffsetTable, shape: Grid) -> Tensor | BandedBias:
            if math.prod(shape) >= BANDED_FROM:
                return BandedBias(table.offsets(shape), shape)
            return table.bias(shape, dtype)

        maps = []
        for i, block in enumerate(self.blocks):
            window = grid if i in self.global_blocks else self.window
            if self.with_cp and self.training:
                block = partial(checkpoint, block, use_reentrant=False)
            x = apply_in_windows(block, x, window, partial(bias, self.offset_table(i)))
            if i in self.global_blocks:
                adaptor = self.ms_adaptor[len(maps)]
                maps.append(adaptor(x.permute(0, 3, 1, 2).contiguous()))
        return tuple(maps)

    def offset_table(self, i: int) -> OffsetTable:
        """Return the relative position table of block i."""
        if self.rel_pos == 'per_block':
            return self.rel_pos_bias[i]
        return self.global_rel_pos_bias if i in self.global_blocks else self.windowed_rel_pos_bias

    def fit_state(
        self, state: dict[str, Tensor], source_grid: Grid | None = None
    ) -> dict[str, Tensor]:
        """Fit the positions of a backbone's official weights, see `fit_positions`."""
        return fit_positions(self, state, source_grid)


def apply_in_windows(
    block: Callable[[Tensor, Tensor | BandedBias], Tensor],
    x: Tensor,
    window: Grid,
    bias: Callable[[Grid], Tensor | BandedBias],
) -> Tensor:
    """Run a block on each window of a patch map (B, h, w, D), with the bias of the window's shape.

    Windows at the right and bottom border are smaller if the window does not divide the map.
    """
    bands = []
    for top, bottom, h in _spans(x.shape[1], window[0]):
        parts = []
        for left, right, w in _spans(x.shape[2], window[1]):
            tokens = window_partition(x[:, top:bottom, left:right], (h, w)).flatten(1, 2)
            tokens = block(tokens, bias((h, w)))
            parts.append(window_reverse(tokens, (h, w), bottom - top, right - left))
        bands.append(torch.cat(parts, dim=2))
    return torch.cat(bands, dim=1)


def _spans(size: int, window: int) -> list[tuple[int, int, int]]:
    """Return (start, stop, window) of the part tiled by full windows and of the remainder."""
    full = size - size % window
    spans = [(0, full, window), (full, size, size - full)]
    return [span for span in spans if span[0] < span[1]]


def _adaptors(dims: int) -> nn.ModuleList:
    up = partial(nn.ConvTranspose2d, dims, dims, kernel_size=2, stride=2)
    return nn.ModuleList(
        [
            nn.Sequential(up(), nn.GroupNorm(32, dims), nn.GELU(), up()),
            up(),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
    )


def _four_blocks(blocks: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    if blocks is None:
        if num_layers % 4:
            raise ValueError(
                f'{num_layers} blocks are not divisible by 4: set global_blocks to four indices, '
                f'the last being {num_layers - 1}'
            )
        return tuple(num_layers * i // 4 - 1 for i in range(1, 5))
    blocks = tuple(blocks)
    increasing = all(a < b for a, b in zip((-1, *blocks), blocks, strict=False))
    if len(blocks) != 4 or not increasing or blocks[-1] != num_layers - 1:
        raise ValueError(
            f'global_blocks is {blocks}, expected four increasing indices that end with the last '
            f'block, {num_layers - 1}'
        )
    return blocks
