"""Fit position tables and embeddings of a checkpoint to another patch grid or kind of table."""

import math
from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..layers.rel_pos import NUM_CLS_ROWS, Grid, num_table_rows, resize_table
from .names import BLOCK_TABLE, INDEX, SHARED_TABLE, drop_copied_tables


def fit_vit(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fit official weights to the position tables and the patch grid of an `MCBEiTViT`.

    Source: lixiaotong97/mc-BEiT@37489a1 run_class_finetuning.py, for square grids.

    Raises:
        ValueError: tables of another kind than `model.rel_pos`, or of unknown grid.
    """
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
    own = {'shared': [SHARED_TABLE], 'per_block': blocks, 'none': []}[model.rel_pos]
    for name in filter(state.__contains__, own):
        grid = table_grid(len(state[name]) - NUM_CLS_ROWS, model.grid)
        if grid != model.grid:
            state[name] = resize_table(state[name].float(), grid, model.grid)
    if model.pos_embed is not None and 'pos_embed' in state:
        grid = embedding_grid(state['pos_embed'].shape[1], model.grid)
        # As the authors convert checkpoints: bicubic, without antialiasing.
        state['pos_embed'] = resample_abs_pos_embed(
            state['pos_embed'], list(model.grid), list(grid), antialias=False
        )
    return state


def table_grid(num_offsets: int, own: Grid | None = None) -> Grid:
    """Find the patch grid (h, w) of a table with (2h - 1)(2w - 1) offsets, class rows excluded.

    Tries the model's own grid, then a square.

    Raises:
        ValueError: neither has this number of offsets; nor do tables of detection backbones, which
            lack the class rows.
    """
    side = (math.isqrt(num_offsets) + 1) // 2
    for grid in (own, (side, side)):
        if grid and num_table_rows(grid) == num_offsets + NUM_CLS_ROWS:
            return tuple(grid)
    raise ValueError(
        f'a position table of {num_offsets} offsets fits neither a square patch grid nor that of '
        'the model: set the img_size of the weights, inputs may have any size (or, for weights of '
        'a detector, load those that it started from)'
    )


def embedding_grid(tokens: int, own: Grid | None = None) -> Grid:
    """Find the patch grid (h, w) of 1 + h*w tokens: the model's own or a square."""
    side = math.isqrt(tokens - 1)
    for grid in (own, (side, side)):
        if grid and grid[0] * grid[1] + 1 == tokens:
            return tuple(grid)
    raise ValueError(
        f'pos_embed has {tokens} tokens, which is neither the patch grid of the model nor a '
        'square one, with a class token: set the img_size of the weights'
    )


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
