"""Fit position tables and embeddings of a checkpoint to another patch grid or kind of table."""

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
    """Fit official weights to the position tables and the patch grid of an `MCBEiTViT`.

    Source: lixiaotong97/mc-BEiT@37489a1 run_class_finetuning.py, for square grids.

    Raises:
        ValueError: tables of another kind than `model.rel_pos`, or of unknown grid.
    """
    index = next((v for k, v in state.items() if k.endswith(INDEX)), None)
    state = drop_copied_tables({k: v for k, v in state.items() if not k.endswith(INDEX)})
    blocks = [f'blocks.{i}.{BLOCK_TABLE}' for i in range(model.num_layers)]
    if SHARED_TABLE in state and any(name in state for name in blocks):
        raise ValueError(
            'the weights have a shared position table and different ones per block: remove those '
            'that do not belong'
        )
    if model.rel_pos == 'per_block' and SHARED_TABLE in state:
        state |= dict.fromkeys(blocks, state.pop(SHARED_TABLE))
    elif model.rel_pos == 'shared' and any(name in state for name in blocks):
        raise ValueError(
            'the weights have one position table per block, the backbone shares one: set '
            "rel_pos='per_block'"
        )
    if model.rel_pos != 'none':
        _check_class_rows(state)
    own = {'shared': [SHARED_TABLE], 'per_block': blocks, 'none': []}[model.rel_pos]
    for name in filter(state.__contains__, own):
        grid = table_grid(len(state[name]) - NUM_CLS_ROWS, model.grid, source_grid, index)
        if grid != model.grid:
            state[name] = resize_table(state[name].float(), grid, model.grid)
    if model.pos_embed is not None and 'pos_embed' in state:
        grid = embedding_grid(state['pos_embed'].shape[1], model.grid, source_grid)
        state['pos_embed'] = resize_pos_embed(state['pos_embed'], grid, model.grid)
    return state


def table_grid(
    num_offsets: int,
    own: Grid | None = None,
    given: Grid | None = None,
    index: Tensor | None = None,
) -> Grid:
    """Find the patch grid (h, w) of a table with (2h - 1)(2w - 1) offsets, class rows excluded.

    Tries in order: the given grid, the one of the stored position index, the model's own, a square.

    Raises:
        ValueError: none of them has this number of offsets.
    """
    side = (math.isqrt(num_offsets) + 1) // 2
    square = None if given else (side, side)
    for grid in (given, _grid_of_index(num_offsets, index), own, square):
        if grid and num_table_rows(grid) == num_offsets + NUM_CLS_ROWS:
            return tuple(grid)
    raise ValueError(
        f'a position table of {num_offsets} offsets fits neither a square patch grid nor '
        f'{given or own}: pass source_grid=(h, w) of the weights, with (2h - 1)(2w - 1) offsets, '
        'to load_weights or in init_cfg'
    )


def embedding_grid(tokens: int, own: Grid | None = None, given: Grid | None = None) -> Grid:
    """Find the patch grid (h, w) of 1 + h*w tokens: the given one, the model's own or a square."""
    side = math.isqrt(tokens - 1)
    for grid in (given, own, (side, side)):
        if grid and grid[0] * grid[1] + 1 == tokens:
            return tuple(grid)
    raise ValueError(
        f'pos_embed has {tokens} tokens, which is not a square patch grid and a class token: pass '
        'source_grid=(h, w) to load_weights or in init_cfg'
    )


def resize_pos_embed(pos_embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize (1, 1 + h*w, D) as the authors convert checkpoints: bicubic, no antialiasing."""
    return resample_abs_pos_embed(pos_embed, list(target), list(source), antialias=False)


def stretch_pos_embed(pos_embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize (1, 1 + h*w, D) as the authors do for inputs of another size than the model's.

    The sampling step is source / (target + 0.1), DINO's guard against rounding errors.
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
    """ValueError for a table of (2h - 1)(2w - 1) rows, an odd number: it lacks the class rows."""
    for name, tensor in state.items():
        if name.endswith('relative_position_bias_table') and len(tensor) % 2:
            raise ValueError(
                f'{name} ({len(tensor)} rows) lacks the three rows of the class token, like tables '
                'of detection backbones: load the weights that the detector started from'
            )


def _grid_of_index(num_offsets: int, index: Tensor | None) -> Grid | None:
    if index is None:
        return None
    num_patches = len(index) - 1
    for height in range(1, num_patches + 1):
        grid = (height, num_patches // height)
        fits = num_table_rows(grid) == num_offsets + NUM_CLS_ROWS
        if fits and torch.equal(position_index(grid, index.device), index):
            return grid
    return None
