"""Positions of the detection backbone: attention bias, and fitting to other patch grids.

Training pads images at the right and bottom, so patches and offsets mean the same in a smaller
image: a smaller grid takes a crop of the positions. A larger grid takes a bicubic enlargement.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import offset_bias
from .rel_pos import Grid

TABLE = 'relative_position_bias_table'


class OffsetTable(nn.Module):
    """Relative position table (offsets, heads) of a patch grid without class token, row-major."""

    def __init__(self, grid: Grid, num_heads: int):
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(math.prod(offset_sides(grid)), num_heads)
        )

    def bias(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """Return the attention bias (1, heads, hw, hw) of any patch grid (h, w)."""
        return offset_bias(self.offsets(grid), grid, 0, grid[0]).to(dtype)

    def offsets(self, grid: Grid) -> Tensor:
        """Return the table (heads, 2h - 1, 2w - 1) of any patch grid (h, w)."""
        offsets = fit_offsets(self.relative_position_bias_table, self.grid, grid)
        return offsets.T.reshape(-1, *offset_sides(grid))


def offset_sides(grid: Grid) -> Grid:
    """Number of vertical and horizontal offsets between two patches of a grid."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def fit_offsets(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Fit a table (rows, heads) to another grid: crop smaller axes, enlarge larger ones."""
    larger = tuple(map(max, source, target))
    table = resize_bicubic(table, offset_sides(source), offset_sides(larger))
    rows, cols = (slice(b - t, b + t - 1) for b, t in zip(larger, target, strict=True))
    return table.view(*offset_sides(larger), -1)[rows, cols].flatten(0, 1)


def fit_pos_embed(pos_embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Fit a position embedding (1, h*w, D) to another grid by the same rule."""
    larger = tuple(map(max, source, target))
    pos_embed = resize_bicubic(pos_embed[0], source, larger)
    return pos_embed.view(*larger, -1)[: target[0], : target[1]].reshape(1, math.prod(target), -1)


def resize_bicubic(rows: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize a row-major map (h*w, C) bicubically, as the authors do on loading."""
    if source == target:
        return rows
    image = rows.float().T.reshape(1, -1, *source)
    image = F.interpolate(image, size=target, mode='bicubic', align_corners=False)
    return image.flatten(2)[0].T.to(rows.dtype)
