"""Fit position tables and embeddings of a checkpoint to a detection backbone."""

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
from .positions import table_grid

TABLE_PER_BLOCK = re.compile(rf'rel_pos_bias\.\d+\.{TABLE}|blocks\.\d+\.{BLOCK_TABLE}')


def fit_positions(
    model: nn.Module, state: Mapping[str, Tensor], source_grid: Grid | None = None
) -> dict[str, Tensor]:
    """Fit the tables and `pos_embed` of official weights to an `MCBEiTDetViT`.

    Tables of a pretrained or fine-tuned backbone lose their class-token rows and are resized as the
    authors do: bicubic for rel_pos='shared', on the geometric grid for 'per_block'. Tables of a
    detection backbone, those of windows included, are cut or enlarged, see `layers.offset_tables`.

    Raises:
        ValueError: one table per block for rel_pos='shared', or positions of unknown grid.
    """
    state = drop_copied_tables({k: v for k, v in state.items() if not k.endswith(INDEX)})
    if model.rel_pos == 'shared' and any(map(TABLE_PER_BLOCK.fullmatch, state)):
        raise ValueError(
            "the weights have one position table per block, the detection backbone rel_pos='shared'"
            ": set rel_pos='per_block'"
        )
    if 'pos_embed' in state:
        state['pos_embed'] = _fit_loaded_pos_embed(state['pos_embed'], model.grid, source_grid)
    fitted, used = {}, set()
    tables = {k: m for k, m in model.named_modules() if isinstance(m, OffsetTable)}
    for name, module in tables.items():
        block = None if model.rel_pos == 'shared' else int(name.split('.')[-1])
        is_global = name.startswith('global') or block in model.global_blocks
        own = (f'{name}.{TABLE}', f'{"global" if is_global else "windowed"}_{SHARED_TABLE}')
        pretrained = (f'blocks.{block}.{BLOCK_TABLE}', SHARED_TABLE)
        source = next((key for key in (*own, *pretrained) if key in state), None)
        if source is None:
            continue
        used.add(source)
        if source in pretrained:
            table = _from_pretrained(state[source], module.grid, source_grid, model.rel_pos)
        else:
            table = _from_detection(state[source], module.grid, source_grid if is_global else None)
        fitted[own[0]] = table
    return {k: v for k, v in state.items() if k not in used} | fitted


def _from_pretrained(table: Tensor, target: Grid, source_grid: Grid | None, rel_pos: str) -> Tensor:
    table = table[:-NUM_CLS_ROWS].float()
    source = table_grid(len(table), given=source_grid)
    if rel_pos == 'per_block':
        return resize_detection_table(table, source, target)
    return resize_bicubic(table, offset_sides(source), offset_sides(target))


def _from_detection(table: Tensor, target: Grid, source_grid: Grid | None) -> Tensor:
    if source_grid is None and len(table) == math.prod(offset_sides(target)):
        return table
    return fit_offsets(table, table_grid(len(table), given=source_grid), target)


def _fit_loaded_pos_embed(pos_embed: Tensor, own: Grid, source_grid: Grid | None) -> Tensor:
    num_rows = pos_embed.shape[1]
    side = math.isqrt(num_rows)
    for grid in (source_grid,) if source_grid else (own, (side, side)):
        if num_rows == math.prod(grid):
            return fit_pos_embed(pos_embed, grid, own)
        if num_rows == math.prod(grid) + 1:  # the class token of pretraining comes first
            return resize_bicubic(pos_embed[0, 1:], grid, own)[None]
    raise ValueError(
        f'pos_embed of {num_rows} rows fits neither a square patch grid nor {source_grid or own}: '
        'pass source_grid=(h, w) to load_weights or in init_cfg'
    )
