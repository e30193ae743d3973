"""Student view + mask -> patch features: the BEiT vision transformer, for pretraining,
classification and segmentation.

Built from timm's BEiT blocks; parameter names are those of the official BEiT and mc-BEiT
checkpoints.
Source: lixiaotong97/mc-BEiT@37489a1 modeling_pretrain.py, modeling_finetune.py.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers.blocks import LayerNorm, arch_sizes, check_choice, init_layers, make_blocks
from .layers.rel_pos import Grid, KeptBiases, num_table_rows, table_to_bias
from .weights.fitting import PretrainedMixin, adapt_on_load
from .weights.positions import fit_vit, stretch_pos_embed

OUT_TYPES = ('raw', 'cls_token', 'featmap', 'avg_featmap')
REL_POS = ('shared', 'per_block', 'none')


class RelativePositionTable(nn.Module):
    """The table that all blocks share, `rel_pos_bias` in checkpoints."""

    def __init__(self, grid: Grid, num_heads: int):
        super().__init__()
        table = torch.zeros(num_table_rows(grid), num_heads)
        self.relative_position_bias_table = nn.Parameter(table)


@MODELS.register_module()
class MCBEiTViT(PretrainedMixin, BaseModule):
    """BEiT vision transformer whose patches can be replaced by a mask token.

    Input sides may be any multiples of the patch size: `forward` resizes the tables.
    `mask_token` exists only with `out_type='raw'` (pretraining), `fc_norm` only with
    `'avg_featmap'`, `norm` with the others unless `final_norm=False` (segmentation).

    Args:
        arch: a name or dict(embed_dims, num_layers, num_heads, feedforward_channels).
        img_size: side or (H, W) in pixels; sets the grid of the position tables.
        layer_scale_init_value: initial gamma_1 and gamma_2; 0 disables layer scale.
        rel_pos: one table for all blocks, one per block, or none.
        out_indices: blocks whose output is returned; negative ones count from the end.
        out_type: 'raw' (B, 1+L, D), 'featmap' (B, D, h, w), 'cls_token' or 'avg_featmap' (B, D).
        with_cp: recompute blocks in the backward pass to save memory.
        compile_blocks: compile each block with torch.compile; call `layers.blocks.allow_recompiles`
            first.
    """

    fresh_parameters = ('fc_norm.', 'norm.', 'mask_token', 'pos_embed')

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.1,
        rel_pos: str = 'shared',
        abs_pos: bool = False,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'raw',
        final_norm: bool = True,
        with_cp: bool = False,
        compile_blocks: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        sizes = arch_sizes(arch)
        check_choice('out_type', out_type, OUT_TYPES)
        check_choice('rel_pos', rel_pos, REL_POS)
        dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self.embed_dims, self.patch_size = dims, patch_size
        self.rel_pos, self.out_type, self.with_cp = rel_pos, out_type, with_cp
        self.out_indices = _block_indices(out_indices, self.num_layers)

        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.grid = self.patch_grid(*size)
        self.patch_embed = PatchEmbed(size, patch_size, in_channels, dims, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dims)) if out_type == 'raw' else None
        num_tokens = 1 + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dims)) if abs_pos else None
        shared = rel_pos == 'shared'
        self.rel_pos_bias = RelativePositionTable(self.grid, sizes['num_heads']) if shared else None
        self.blocks = make_blocks(sizes, drop_path_rate, layer_scale_init_value)
        if rel_pos == 'per_block':
            for block in self.blocks:
                table = torch.zeros(num_table_rows(self.grid), sizes['num_heads'])
                block.attn.relative_position_bias_table = nn.Parameter(table)
        pooled = out_type == 'avg_featmap'
        self.norm = LayerNorm(dims) if final_norm and not pooled else nn.Identity()
        self.fc_norm = LayerNorm(dims) if pooled else None
        self._kept_biases = KeptBiases()
        self._initialize()
        if compile_blocks:
            for block in self.blocks:
                block.compile()
        self.register_load_state_dict_pre_hook(adapt_on_load)

    def _initialize(self) -> None:
        """Initialize as the authors do: only pretraining truncates at one sigma."""
        pretraining = self.mask_token is not None
        cut = 0.02 if pretraining else 2.0
        init = partial(nn.init.trunc_normal_, std=0.02, a=-cut, b=cut)
        init_layers(self, init, (nn.Linear, nn.Conv2d) if pretraining else (nn.Linear,))
        for token in (self.cls_token, self.mask_token, self.pos_embed):
            if token is not None:
                init(token)

    def fit_state(
        self, state: Mapping[str, Tensor], source_grid: Grid | None = None
    ) -> dict[str, Tensor]:
        """Fit official weights to this kind of table and grid, see `weights.positions.fit_vit`."""
        return fit_vit(self, state, source_grid)

    def patch_grid(self, height: int, width: int) -> Grid:
        """Return the patch grid (h, w) of an image; ValueError if the patch does not divide it."""
        if height % self.patch_size or width % self.patch_size or min(height, width) <= 0:
            raise ValueError(
                f'input of {height}x{width} pixels is not a multiple of the '
                f'{self.patch_size}-pixel patch: resize or pad it'
            )
        return height // self.patch_size, width // self.patch_size

    def position_bias(self, grid: Grid) -> list[Tensor | None]:
        """Return the attention bias of each block for a patch grid, see `table_to_bias`."""
        if self.rel_pos == 'none':
            return [None] * self.num_layers
        if self.rel_pos == 'shared':
            tables = [self.rel_pos_bias.relative_position_bias_table]
        else:
            tables = [block.attn.relative_position_bias_table for block in self.blocks]
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept_biases.clear()  # the coming step may change the tables
            biases = [table_to_bias(table, self.grid, grid) for table in tables]
        else:
            biases = self._kept_biases.get(tables, self.grid, grid)
        return biases * (self.num_layers // len(biases))

    def train(self, mode: bool = True) -> 'MCBEiTViT':
        """Set the mode and drop the position biases kept for inference."""
        self._kept_biases.clear()
        return super().train(mode)

    def embed(self, x: Tensor, mask: Tensor | None, grid: Grid) -> Tensor:
        """Embed images (B, C, H, W) as tokens (B, 1+L, D), the mask token where mask is True."""
        x = self.patch_embed(x)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError(f"masks need out_type='raw', got {self.out_type!r}")
            mask = mask.flatten(1)
            if mask.shape != x.shape[:2]:
                raise ValueError(
                    f'mask {tuple(mask.shape)} does not fit {len(x)} images of {grid} patches'
                )
            x = torch.where(mask.bool().unsqueeze(-1), self.mask_token.to(x.dtype), x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + stretch_pos_embed(self.pos_embed, self.grid, grid)
        return x

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Encode images (B, C, H, W); mask (B, L) or (B, h, w) bool, True = masked patch."""
        grid = self.patch_grid(*x.shape[-2:])
        biases = self.position_bias(grid)
        x = self.embed(x, mask, grid)
        outs = []
        for i, (block, bias) in enumerate(zip(self.blocks, biases, strict=True)):
            if self.with_cp and self.training:
                x = checkpoint(block, x, bias, use_reentrant=False)
            else:
                x = block(x, bias)
            if i in self.out_indices:
                last = i == self.num_layers - 1
                outs.append(self._format(self.norm(x) if last else x, grid))
        return tuple(outs)

    def _format(self, x: Tensor, grid: Grid) -> Tensor:
        if self.out_type == 'raw':
            return x
        if self.out_type == 'cls_token':
            return x[:, 0]
        patches = x[:, 1:]
        if self.out_type == 'avg_featmap':
            return self.fc_norm(patches.mean(dim=1))
        return patches.transpose(1, 2).reshape(len(x), -1, *grid)


def _block_indices(out_indices: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    wrong = [i for i in indices if not -num_layers <= i < num_layers]
    if wrong:
        raise ValueError(f'out_indices {wrong} are out of range for {num_layers} blocks')
    return tuple(sorted(i % num_layers for i in indices))
