"""Positions of the detection backbone: attention bias, fit to other patch grids and checkpoints.

Pretrained shared tables are resized bicubically, per-block ones by the authors' geometric rule.
Afterwards, between grids of detection, at run time and on loading, a smaller grid takes a cut,
since training pads its images at the right and bottom, so that a patch and an offset keep their
meaning in a smaller image; a larger grid takes a bicubic enlargement.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import offset_bias
from .rel_pos import Grid

TABLE = 'relative_position_bias_table'


class OffsetTable(nn.Module):
    """Relative position table of a patch grid without class token: (offsets, heads), row-major."""

    def __init__(self, grid: Grid, num_heads: int):
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(math.prod(offset_sides(grid)), num_heads)
        )

    def bias(self, grid: Grid, dtype: torch.dtype) -> Tensor:
        """Attention bias of a patch grid (h, w), the table's own or another: (1, heads, hw, hw)."""
        return offset_bias(self.offsets(grid), grid, 0, grid[0]).to(dtype)

    def offsets(self, grid: Grid) -> Tensor:
        """The table of a patch grid (h, w), the own or another: (heads, 2h - 1, 2w - 1)."""
        offsets = fit_offsets(self.relative_position_bias_table, self.grid, grid)
        return offsets.T.reshape(-1, *offset_sides(grid))


def offset_sides(grid: Grid) -> Grid:
    """Number of vertical and horizontal offsets between two patches of a grid."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def fit_offsets(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Table of a grid from the table (rows, heads) of another: cut where smaller, else enlarged."""
    larger = tuple(map(max, source, target))
    table = resize_bicubic(table, offset_sides(source), offset_sides(larger))
    rows, cols = (slice(b - t, b + t - 1) for b, t in zip(larger, target, strict=True))
    return table.view(*offset_sides(larger), -1)[rows, cols].flatten(0, 1)


def fit_pos_embed(pos_embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Position embedding (1, h*w, D) of a grid from that of another, by the same rule."""
    larger = tuple(map(max, source, target))
    pos_embed = resize_bicubic(pos_embed[0], source, larger)
    return pos_embed.view(*larger, -1)[: target[0], : target[1]].reshape(1, math.prod(target), -1)


def resize_bicubic(rows: Tensor, source: Grid, target: Grid) -> Tensor:
    """Plain bicubic interpolation of a row-major map (h*w, C), as the authors load positions."""
    if source == target:
        return rows
    image = rows.float().T.reshape(1, -1, *source)
    image = F.interpolate(image, size=target, mode='bicubic', align_corners=False)
    return image.flatten(2)[0].T.to(rows.dtype)
