"""Plain implementations: the paper's equations one after the other, without optimizations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mcbeit_mm.layers.attention import BandedBias, offset_bias
from mcbeit_mm.layers.blocks import BiasedAttention
from mcbeit_mm.mcbeit import MCBEiT
from mcbeit_mm.targets import multi_choice_targets
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

TINY = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def plain_loss(
    feats: Tensor, weight: Tensor, bias: Tensor, token_logits: Tensor, mask: Tensor
) -> Tensor:
    """Logits and targets of all tokens; then the mean over masked ones."""
    logits = F.linear(feats, weight, bias)
    targets = multi_choice_targets(token_logits, feats)
    losses = -(targets * logits.float().log_softmax(-1)).sum(-1)
    return losses[mask].mean()


class PlainTokenizer(GumbelVQGANTokenizer):
    """NCHW in fp32, outside autocast, as the authors run theirs."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, V, h, w)."""
        with torch.autocast(images.device.type, enabled=False):
            return self.encode(self.normalize(images.float()))

    def freeze(self, weights_file=None) -> None:
        """Freeze, in NCHW."""
        super().freeze(weights_file)
        self.to(memory_format=torch.contiguous_format)


class PlainAttention(BiasedAttention):
    """Attention matrix, added bias and softmax as separate operations."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | BandedBias | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, tokens, _ = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q * self.scale) @ k.transpose(-2, -1)
        if isinstance(shared_rel_pos_bias, BandedBias):
            offsets, grid = shared_rel_pos_bias.offsets, shared_rel_pos_bias.grid
            shared_rel_pos_bias = offset_bias(offsets, grid, 0, grid[0])
        if shared_rel_pos_bias is not None:
            attention = attention + shared_rel_pos_bias[..., :tokens]
        x = attention.softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


class PlainMCBEiT(MCBEiT):
    """The loss of all tokens, without metrics."""

    def loss(self, inputs: list[Tensor], data_samples: list) -> dict[str, Tensor]:
        """Compute the loss as MCBEiT does."""
        mask = torch.stack([sample.mask for sample in data_samples]).flatten(1)
        mask = mask.to(inputs[0].device)
        token_logits = self.tokenizer(inputs[1])
        feats = self.backbone(inputs[0], mask)[-1][:, 1:]
        layer = self.head.lm_head
        return dict(loss=plain_loss(feats, layer.weight, layer.bias, token_logits, mask))


def use_plain_attention(backbone: torch.nn.Module) -> None:
    for block in backbone.blocks:
        block.attn.__class__ = PlainAttention
