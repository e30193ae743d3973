"""Relative position tables: their index, their bias, and their resizing to another patch grid.

A table has one row per relative offset (dy, dx) of a patch grid (h, w), row-major, and three final
rows for class-to-patch, patch-to-class and class-to-class: (2h - 1)(2w - 1) + 3 rows, one column
per head.
Source: BEiT (arXiv 2106.08254) and lixiaotong97/mc-BEiT@37489a1.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import make_interp_spline
from timm.models.beit import gen_relative_position_index
from torch import Tensor

Grid = tuple[int, int]
NUM_CLS_ROWS = 3
# Fused kernels for 16-bit types require the rows of a bias to start at multiples of 8 elements.
ALIGNMENT = 8
KEPT_BYTES = 2**30


def num_table_rows(grid: Grid) -> int:
    """Number of table rows of a patch grid, class-token rows included."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLS_ROWS


@lru_cache(maxsize=32)
def position_index(grid: Grid, device: torch.device) -> Tensor:
    """Table row of each (query, key) pair, class token first: (1 + h*w, 1 + h*w) int64."""
    with torch.inference_mode(False), torch.no_grad():  # cached for training too
        return gen_relative_position_index(grid, device=device)


@lru_cache(maxsize=32)
def _aligned_index(grid: Grid, device: torch.device) -> Tensor:
    """`position_index` with rows padded by zeros to a multiple of ALIGNMENT."""
    index = position_index(grid, device)
    with torch.inference_mode(False), torch.no_grad():
        return F.pad(index, (0, -len(index) % ALIGNMENT))


def table_to_bias(table: Tensor, table_grid: Grid, grid: Grid) -> Tensor:
    """Attention bias of an input with patch grid `grid`: (1, heads, N, N or more), N = 1 + h*w.

    Columns beyond N pad rows to a multiple of ALIGNMENT; `attention.attend` ignores them. A table
    of another grid is resized first; gradients flow through both steps.
    """
    table = resize_table(table, table_grid, grid)
    index = _aligned_index(grid, table.device)
    return table[index].permute(2, 0, 1).unsqueeze(0).contiguous()


class KeptBiases:
    """Cache for inference: the biases of the last patch grid while their tables are unchanged.

    Changes are detected by a table's version, which fused optimizers and writes to `.data` do not
    increment: call `clear` after these. Biases above KEPT_BYTES are not cached.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Empty the cache."""
        self._key: tuple = ()
        self._biases: list[Tensor] = []

    def get(self, tables: Sequence[Tensor], table_grid: Grid, grid: Grid) -> list[Tensor]:
        """Return `table_to_bias` of each table, without gradient."""
        key = (grid, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tables))
        if key == self._key:
            return self._biases
        biases = [table_to_bias(table, table_grid, grid) for table in tables]
        if sum(bias.nbytes for bias in biases) <= KEPT_BYTES:
            self._key, self._biases = key, biases
        return biases


def resize_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize a table by the BEiT family's cubic interpolation on a geometric grid.

    The interpolation is linear in the table, so it is a product with one small matrix per axis:
    differentiable, and defined for non-square grids. The class-token rows are kept.
    """
    if source == target:
        return table
    offsets, cls_rows = table[:-NUM_CLS_ROWS], table[-NUM_CLS_ROWS:]
    return torch.cat([_resize_offsets(offsets, source, target), cls_rows])


def resize_detection_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize a table without class-token rows as the authors' detection code does.

    It searches the ratio for any size. For an equal or smaller grid the search ends at q = 1.01,
    so the result is neither the identity nor a shrunken table but a stretched crop.
    Source: lixiaotong97/mc-BEiT@37489a1 detection.
    """
    return _resize_offsets(table, source, target, always_geometric=True)


def _resize_offsets(
    offsets: Tensor, source: Grid, target: Grid, always_geometric: bool = False
) -> Tensor:
    heads = offsets.shape[1]
    rows, cols = (
        axis_matrix(s, t, offsets.device, offsets.dtype, always_geometric)
        for s, t in zip(source, target, strict=True)
    )
    offsets = offsets.view(2 * source[0] - 1, 2 * source[1] - 1, heads)
    return torch.einsum('as,bt,sth->abh', rows, cols, offsets).reshape(-1, heads)


@lru_cache(maxsize=64)
def axis_matrix(
    source: int,
    target: int,
    device: torch.device,
    dtype: torch.dtype,
    always_geometric: bool = False,
) -> Tensor:
    """Interpolation matrix of one axis, (2 * target - 1, 2 * source - 1), rows sum to 1.

    Source offsets are placed at 0, +-1, +-(1 + q), +-(1 + q + q^2), ... so that near offsets keep
    their spacing and the outermost matches the target's outermost. A smaller target uses evenly
    spaced source offsets, unless `always_geometric`, see `resize_detection_table`.
    """
    if source == 1:
        matrix = np.ones((2 * target - 1, 1))
    else:
        evenly = target <= source and not always_geometric
        positions = (_even_positions if evenly else _geometric_positions)(source, target)
        wanted = np.arange(-(target - 1), target, dtype=float)
        degree = min(3, 2 * source - 2)
        spline = make_interp_spline(positions, np.eye(2 * source - 1), k=degree)
        matrix = spline(np.clip(wanted, positions[0], positions[-1]))
    with torch.inference_mode(False), torch.no_grad():  # cached for training too
        return torch.as_tensor(matrix, dtype=dtype, device=device)


def _even_positions(source: int, target: int) -> np.ndarray:
    return np.linspace(-(target - 1), target - 1, 2 * source - 1)


def _geometric_positions(source: int, target: int) -> np.ndarray:
    low, high = 1.01, 1.5
    # The authors' bisection to 1e-6: 1 + q + ... over the source's half width equals the target's.
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (source - 1)) / (1 - ratio) > target - 1:
            high = ratio
        else:
            low = ratio
    half = np.cumsum(ratio ** np.arange(source - 1))
    return np.concatenate([-half[::-1], [0.0], half])
