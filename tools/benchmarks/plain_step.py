"""The pretraining step without this toolkit's optimizations, and mmpretrain's BEiT v1."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import mmpretrain
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor

from benchmarks.loss import plain_loss
from benchmarks.measure import ROOT
from mcbeit_mm.cached_targets.cache import Header, encode
from mcbeit_mm.cached_targets.tokenizer import CachedTokenizer
from mcbeit_mm.layers.attention import BandedBias, offset_bias
from mcbeit_mm.layers.blocks import BiasedAttention
from mcbeit_mm.mcbeit import MCBEiT
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

TINY = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


class PlainTokenizer(GumbelVQGANTokenizer):
    """NCHW in fp32, outside autocast: as the authors run theirs."""

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
    """Attention matrices, added bias and softmax one after the other."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | BandedBias | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, tokens, _ = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = torch.nn.functional.linear(x, self.qkv.weight, qkv_bias)
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
    """The equations one after the other, for all tokens."""

    def loss(self, inputs: list[Tensor], data_samples: list) -> dict[str, Tensor]:
        """As MCBEiT, without metrics."""
        mask = torch.stack([sample.mask for sample in data_samples]).flatten(1)
        mask = mask.to(inputs[0].device)
        token_logits = self.tokenizer(inputs[1])
        feats = self.backbone(inputs[0], mask)[-1][:, 1:]
        layer = self.head.lm_head
        return dict(loss=plain_loss(feats, layer.weight, layer.bias, token_logits, mask))


def sizes_of_tokenizer(quick: bool) -> dict:
    """Constructor arguments of the released tokenizer, or of a small one."""
    model = Config.fromfile(ROOT / 'configs/_base_/models/vqgan_f8-8192.py').model
    ddconfig = dict(model.ddconfig, **(dict(ch=32) if quick else {}))
    return dict(ddconfig=ddconfig, n_embed=64 if quick else 8192, embed_dim=model.embed_dim)


def mcbeit(side: str, quick: bool) -> MCBEiT:
    """The config's model with a tokenizer of random weights, computing as `side` says."""
    config = Config.fromfile(ROOT / 'configs/_base_/models/mcbeit_vit-base-p16.py').model
    plain = side == 'plain'
    tokenizer = (PlainTokenizer if plain else GumbelVQGANTokenizer)(**sizes_of_tokenizer(quick))
    config.update(type=PlainMCBEiT if plain else MCBEiT, target_generator=None)
    if quick:
        config.backbone.arch = TINY
        config.head.update(embed_dims=32, vocab_size=64)
    if side == 'ours without bias':
        config.backbone.rel_pos = 'none'
    if 'half tokenizer' in side:
        config.tokenizer_precision = 'bf16'
    if 'compiled' in side:
        config.compile_tokenizer = True
        config.backbone.compile_blocks = config.head.compile_loss = True
    config.target_generator = tokenizer
    model = MODELS.build(config)
    if plain:
        for block in model.backbone.blocks:
            block.attn.__class__ = PlainAttention
    return model


def cache_targets(model: MCBEiT, views: Tensor, quick: bool) -> Tensor:
    """Replace the model's tokenizer by a cache of 256 codes, or of all (`quick`: the same loss);
    return the records of these views. Reading them from disk is the data loader's work.
    """
    tokenizer = model.tokenizer
    grid = tuple(side // tokenizer.stride for side in views.shape[2:])
    vocab_size, tau = tokenizer.vocab_size, 4.0
    k = vocab_size if quick else 256
    with TemporaryDirectory() as folder:
        Header(vocab_size, tokenizer.stride, grid, k, tau, 0, 1, 0, {}, {}).write(folder)
        model._tokenizer[0] = CachedTokenizer(folder).to(views.device)
    return encode(tokenizer(views), k, tau)


def beit_v1() -> torch.nn.Module:
    """Mmpretrain's BEiT v1 with its own tokenizer, DALL-E's encoder; random weights."""
    name = '.mim/configs/beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py'
    config = copy.deepcopy(Config.fromfile(Path(mmpretrain.__file__).parent / name).model)
    config.target_generator.pop('init_cfg')
    model = MODELS.build(dict(config, _scope_='mmpretrain'))
    model.target_generator.requires_grad_(False)
    return model
