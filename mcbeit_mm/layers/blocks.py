"""Transformer block of the backbones: timm's BEiT block with the position bias as an argument.

Parameter names are those of the official BEiT and mc-BEiT checkpoints.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from timm.models.beit import Attention, Block
from torch import Tensor, nn

from .attention import BandedBias, attend

ARCHS = {
    'small': dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
    'base': dict(embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16, feedforward_channels=4096),
}
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class BiasedAttention(Attention):
    """timm's BEiT attention whose position bias is an argument: one bias serves several blocks."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | BandedBias | None = None) -> Tensor:
        """Attend over tokens (B, N, D) with a bias (1, heads, N, N), a `BandedBias` or None."""
        batch, num_tokens, _ = x.shape
        qkv_bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(batch, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if isinstance(shared_rel_pos_bias, BandedBias):
            x = shared_rel_pos_bias.attend(q, k, v)
        else:
            x = attend(q, k, v, shared_rel_pos_bias)
        return self.proj(x.transpose(1, 2).reshape(batch, num_tokens, -1))


def make_blocks(sizes: dict, drop_path_rate: float, layer_scale: float) -> nn.ModuleList:
    """Build timm's BEiT blocks with `BiasedAttention`; drop path grows linearly with depth."""
    dims, num_heads = sizes['embed_dims'], sizes['num_heads']
    blocks = nn.ModuleList()
    for rate in calculate_drop_path_rates(drop_path_rate, sizes['num_layers']):
        block = Block(
            dims,
            num_heads,
            qkv_bias=True,
            mlp_ratio=sizes['feedforward_channels'] / dims,
            drop_path=rate,
            init_values=layer_scale or None,
            norm_layer=LayerNorm,
        )
        block.attn = BiasedAttention(dims, num_heads, qkv_bias=True)
        blocks.append(block)
    return blocks


@torch.no_grad()
def init_layers(
    model: nn.Module, init: Callable[[Tensor], Tensor], kinds: tuple[type[nn.Module], ...]
) -> None:
    """Initialize the given kinds of layers; scale down the outputs of block i, as BEiT does."""
    for module in model.modules():
        if isinstance(module, kinds):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for depth, block in enumerate(model.blocks, start=1):
        block.attn.proj.weight.div_((2.0 * depth) ** 0.5)
        block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)


def arch_sizes(arch: str | dict) -> dict:
    """Return the four sizes of an architecture given by name or in full."""
    if isinstance(arch, str):
        check_choice('arch', arch, tuple(ARCHS))
        return ARCHS[arch]
    missing = set(ARCHS['base']) - set(arch)
    if missing:
        raise ValueError(f'arch {dict(arch)} lacks {sorted(missing)}')
    return arch


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raise ValueError unless the value of a setting is one of its choices."""
    if value not in choices:
        raise ValueError(f'{name} is {value!r}, expected one of {choices}')


def allow_recompiles(model_cfg: Mapping) -> None:
    """Raise torch.compile's process-wide recompile limit if the backbone has `compile_blocks`.

    Drop path rates specialize the code of each block, and all blocks share one limit, beyond which
    torch runs them uncompiled.
    """
    backbone = model_cfg.get('backbone') or {}
    if backbone.get('compile_blocks'):
        # Four versions per block: training, evaluation, with and without checkpointing.
        needed = 4 * arch_sizes(backbone.get('arch', 'base'))['num_layers']
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, needed)
