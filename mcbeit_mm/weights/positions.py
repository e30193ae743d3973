"""Position tables and embeddings of a checkpoint made to fit another patch grid or kind."""

import math
from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..layers.rel_pos import NUM_CLS_ROWS, Grid, num_table_rows, position_index, resize_table
from .names import BLOCK_TABLE, INDEX, SHARED_TABLE, drop_copied_tables


def fit_vit(
    model: nn.Module, state: Mapping[str, Tensor], source_grid: Grid | None = None
) -> dict[str, Tensor]:
    """Fit official weights to an `MCBEiTViT`: its kind of position tables and its patch grid.

    Source: lixiaotong97/mc-BEiT@37489a1 run_class_finetuning.py, which does the same for square
    grids.

    Raises:
        ValueError: tables that `model.rel_pos` cannot take, or of unknown grid.
    """
    index = next((v for k, v in state.items() if k.endswith(INDEX)), None)
    state = drop_copied_tables({k: v for k, v in state.items() if not k.endswith(INDEX)})
    blocks = [f'blocks.{i}.{BLOCK_TABLE}' for i in range(model.num_layers)]
    if SHARED_TABLE in state and any(name in state for name in blocks):
        raise ValueError(
            'the weights have a position table for all blocks and other ones for each block: '
            'remove those that do not belong'
        )
    if model.rel_pos == 'per_block' and SHARED_TABLE in state:
        state |= dict.fromkeys(blocks, state.pop(SHARED_TABLE))
    elif model.rel_pos == 'shared' and any(name in state for name in blocks):
        raise ValueError(
            'the weights have one position table per block, the backbone one for all: set '
            "rel_pos='per_block'"
        )
    if model.rel_pos != 'none':
        _check_class_rows(state)
    own = {'shared': [SHARED_TABLE], 'per_block': blocks, 'none': []}[model.rel_pos]
    for name in filter(state.__contains__, own):
        grid = table_grid(len(state[name]), model.grid, source_grid, index)
        if grid != model.grid:
            state[name] = resize_table(state[name].float(), grid, model.grid)
    if model.pos_embed is not None and 'pos_embed' in state:
        grid = embedding_grid(state['pos_embed'].shape[1], model.grid, source_grid)
        state['pos_embed'] = resize_pos_embed(state['pos_embed'], grid, model.grid)
    return state


def table_grid(
    rows: int, own: Grid | None = None, given: Grid | None = None, index: Tensor | None = None
) -> Grid:
    """Patch grid (h, w) of a position table with class rows, from what is known about it.

    In this order: the one given, the one with the stored position index, the model's own, a square.

    Raises:
        ValueError: none of them has this number of rows.
    """
    side = (math.isqrt(rows - NUM_CLS_ROWS) + 1) // 2
    candidates = [given, _grid_of_index(rows, index), own, None if given else (side, side)]
    for grid in candidates:
        if grid and num_table_rows(grid) == rows:
            return tuple(grid)
    raise ValueError(
        f'position tables of {rows} rows belong to no square patch grid nor to {given or own}: '
        'pass source_grid=(h, w) with (2h - 1)(2w - 1) + 3 rows to load_weights or in init_cfg'
    )


def resize_pos_embed(pos_embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize (1, 1 + h*w, D) as the authors convert checkpoints: bicubic, no antialiasing."""
    return resample_abs_pos_embed(pos_embed, list(target), list(source), antialias=False)


def stretch_pos_embed(pos_embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize (1, 1 + h*w, D) as the authors do for inputs of another size than the model's.

    The step between two samples is source / (target + 0.1), which DINO chose against rounding.
    Source: lixiaotong97/mc-BEiT@37489a1 modeling_finetune.py.
    """
    if source == target:
        return pos_embed
    patches = pos_embed[:, 1:].unflatten(1, source).permute(0, 3, 1, 2).float()
    scale = [(t + 0.1) / s for s, t in zip(source, target, strict=True)]
    patches = nn.functional.interpolate(patches, scale_factor=scale, mode='bicubic')
    patches = patches.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], patches], dim=1)


def _check_class_rows(state: Mapping[str, Tensor]) -> None:
    """ValueError for tables with an odd number of rows: (2h - 1)(2w - 1), without class rows."""
    for name, tensor in state.items():
        if name.endswith('relative_position_bias_table') and len(tensor) % 2:
            raise ValueError(
                f'{name} ({len(tensor)} rows) lacks the three rows of the class token, as the '
                'tables of detection backbones do: load the weights that the detector started from'
            )


def _grid_of_index(rows: int, index: Tensor | None) -> Grid | None:
    if index is None:
        return None
    num_patches = len(index) - 1
    for height in range(1, num_patches + 1):
        grid = (height, num_patches // height)
        fits = height * grid[1] == num_patches and num_table_rows(grid) == rows
        if fits and torch.equal(position_index(grid, index.device), index):
            return grid
    return None


def embedding_grid(tokens: int, own: Grid | None = None, given: Grid | None = None) -> Grid:
    """Patch grid (h, w) of an embedding with class token: the one given, its own, a square."""
    side = math.isqrt(tokens - 1)
    for grid in (given, own, (side, side)):
        if grid and grid[0] * grid[1] + 1 == tokens:
            return tuple(grid)
    raise ValueError(
        f'pos_embed has {tokens} tokens, which is no square patch grid with a class token: pass '
        'source_grid=(h, w) to load_weights or in init_cfg'
    )
