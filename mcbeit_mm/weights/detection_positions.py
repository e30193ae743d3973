"""Position tables and embeddings of a checkpoint made to fit a detection backbone."""

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..layers.offset_tables import (
    TABLE,
    OffsetTable,
    fit_offsets,
    fit_pos_embed,
    offset_sides,
    resize_bicubic,
)
from ..layers.rel_pos import NUM_CLS_ROWS, Grid, resize_detection_table
from .names import BLOCK_TABLE, INDEX, SHARED_TABLE, drop_copied_tables


def fit_positions(
    model: nn.Module, state: Mapping[str, Tensor], source_grid: Grid | None = None
) -> dict[str, Tensor]:
    """Official weights of a backbone with tables and `pos_embed` fitted to an `MCBEiTDetViT`.

    From a pretrained or fine-tuned backbone the class-token rows are dropped and the rest is
    resized as the authors do: bicubic, tables of a 'per_block' model by the geometric grid.
    Positions of a detection backbone follow the rule above, tables for windows included. Other
    entries come back untouched.

    Raises:
        ValueError: one table per block for rel_pos='shared', or positions of an unknown grid.
    """
    state = drop_copied_tables({k: v for k, v in state.items() if not k.endswith(INDEX)})
    per_block_tables = re.compile(rf'rel_pos_bias\.\d+\.{TABLE}|blocks\.\d+\.{BLOCK_TABLE}')
    if model.rel_pos == 'shared' and any(map(per_block_tables.fullmatch, state)):
        raise ValueError(
            "the weights have one position table per block, the detection backbone rel_pos='shared'"
            ": set rel_pos='per_block'"
        )
    if 'pos_embed' in state:
        state['pos_embed'] = _fit_loaded_pos_embed(state['pos_embed'], model.grid, source_grid)
    fitted, used = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, OffsetTable):
            block = None if model.rel_pos == 'shared' else int(name.split('.')[-1])
            is_global = name.startswith('global') or block in model.global_blocks
            own = (f'{name}.{TABLE}', f'{"global" if is_global else "windowed"}_{SHARED_TABLE}')
            pretrained = (f'blocks.{block}.{BLOCK_TABLE}', SHARED_TABLE)
            source = next((key for key in (*own, *pretrained) if key in state), None)
            if source in pretrained:
                table = _fit_pretrained(state[source], module.grid, source_grid, model.rel_pos)
            elif source:
                table = _fit_own(state[source], module.grid, source_grid if is_global else None)
            else:
                continue
            used.add(source)
            fitted[own[0]] = table
    return {k: v for k, v in state.items() if k not in used} | fitted


def _fit_pretrained(table: Tensor, target: Grid, source_grid: Grid | None, rel_pos: str) -> Tensor:
    table = table[:-NUM_CLS_ROWS].float()
    source = _square_or_known(len(table), source_grid)
    if rel_pos == 'per_block':
        return resize_detection_table(table, source, target)
    return resize_bicubic(table, offset_sides(source), offset_sides(target))


def _fit_own(table: Tensor, target: Grid, source_grid: Grid | None) -> Tensor:
    if source_grid is None and len(table) == math.prod(offset_sides(target)):
        return table
    return fit_offsets(table, _square_or_known(len(table), source_grid), target)


def _fit_loaded_pos_embed(pos_embed: Tensor, own: Grid, source_grid: Grid | None) -> Tensor:
    num_rows = pos_embed.shape[1]
    side = math.isqrt(num_rows)
    for grid in (source_grid,) if source_grid else (own, (side, side)):
        if num_rows == math.prod(grid):
            return fit_pos_embed(pos_embed, grid, own)
        if num_rows == math.prod(grid) + 1:  # pretraining has a class token in front
            return resize_bicubic(pos_embed[0, 1:], grid, own)[None]
    raise ValueError(
        f'pos_embed of {num_rows} rows belongs to no square patch grid nor to {source_grid or own}'
        ': pass source_grid=(h, w) to load_weights or in init_cfg'
    )


def _square_or_known(num_offsets: int, known: Grid | None) -> Grid:
    side = (math.isqrt(num_offsets) + 1) // 2
    grid = known or (side, side)
    if math.prod(offset_sides(grid)) != num_offsets:
        raise ValueError(
            f'a position table of {num_offsets} offsets does not belong to a {grid[0]}x{grid[1]} '
            'patch grid: pass source_grid=(h, w) of the weights to load_weights or in init_cfg'
        )
    return grid
