"""Translate parameter names of BEiT: official (also timm's), mmpretrain, mmseg, Hugging Face.

This package uses the official names: `cls_token`, `patch_embed.proj.weight`,
`blocks.0.attn.qkv.weight`, `rel_pos_bias.relative_position_bias_table`, `norm`, `fc_norm`, and the
heads `head` (classes) and `lm_head` (tokens).
Source: lixiaotong97/mc-BEiT@37489a1, mmpretrain's BEiTViT, transformers' BeitModel.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

INDEX = 'relative_position_index'
SHARED_TABLE = 'rel_pos_bias.relative_position_bias_table'
BLOCK_TABLE = 'attn.relative_position_bias_table'
PREFERRED_PREFIXES = ('', 'module.', 'backbone.', 'encoder.', 'model.')
# Names of heads in full models -> official names, in order of preference when loading.
HEADS = {
    'head.fc': 'head',
    'classifier': 'head',
    'head': 'head',
    'head.lm_head': 'lm_head',
    'head.cls_head': 'lm_head',
    'lm_head': 'lm_head',
}


@dataclass(frozen=True)
class Dialect:
    """One library's names of a vision transformer; the dicts map official names to its names."""

    blocks: str
    outside: Mapping[str, str]
    inside: Mapping[str, str]  # relative to a block
    qkv: tuple[str, str, str] | None = None  # weights that make up the fused projection

    @property
    def anchor(self) -> str:
        """The parameter name by which the dialect is detected."""
        return f'{self.blocks}.0.{self.inside.get("norm1", "norm1")}.weight'

    def rename(self, name: str, to_official: bool) -> str:
        """Translate one name without prefix; unknown names are returned unchanged."""
        here, there = (self.blocks, 'blocks') if to_official else ('blocks', self.blocks)
        if block := re.match(rf'{re.escape(here)}\.(\d+)\.', name):
            inner = _replace_start(name[block.end() :], self.inside, to_official)
            return f'{there}.{block[1]}.{inner}'
        return _replace_start(name, self.outside, to_official)


HF_ATTENTION = 'attention.attention'
DIALECTS = {
    'official': Dialect('blocks', {}, {}),
    'mmpretrain': Dialect(
        'layers',
        {'patch_embed.proj': 'patch_embed.projection', 'norm': 'ln1', 'fc_norm': 'ln2'},
        {'norm1': 'ln1', 'norm2': 'ln2', 'mlp.fc1': 'ffn.layers.0.0', 'mlp.fc2': 'ffn.layers.1'},
    ),
    'hf': Dialect(
        'encoder.layer',
        {
            'cls_token': 'embeddings.cls_token',
            'mask_token': 'embeddings.mask_token',
            'pos_embed': 'embeddings.position_embeddings',
            'patch_embed.proj': 'embeddings.patch_embeddings.projection',
            'rel_pos_bias': 'encoder.relative_position_bias',
            'norm': 'layernorm',
            'fc_norm': 'pooler.layernorm',
        },
        {
            'gamma_1': 'lambda_1',
            'gamma_2': 'lambda_2',
            'norm1': 'layernorm_before',
            'norm2': 'layernorm_after',
            'attn.q_bias': f'{HF_ATTENTION}.query.bias',
            'attn.v_bias': f'{HF_ATTENTION}.value.bias',
            'attn.proj': 'attention.output.dense',
            BLOCK_TABLE: f'{HF_ATTENTION}.relative_position_bias.relative_position_bias_table',
            'mlp.fc1': 'intermediate.dense',
            'mlp.fc2': 'output.dense',
        },
        tuple(f'{HF_ATTENTION}.{part}.weight' for part in ('query', 'key', 'value')),
    ),
}


class Official(NamedTuple):
    """Weights under official names, split into backbone, known heads and the rest."""

    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]
    rest: dict[str, Tensor]
    dialect: str | None  # None: no transformer found, names unchanged
    prefix: str


def convert(state_dict: Mapping[str, Tensor], to: str = 'mcbeit') -> dict[str, Tensor]:
    """Rename weights without loss; prefixes and index buffers are removed.

    Args:
        state_dict: weights of any known naming; unknown names are kept.
        to: 'mcbeit' (official names), 'timm' (official names, with a shared position table copied
            to every block) or 'hf' (as transformers stores them in files).
    """
    if to not in ('mcbeit', 'timm', 'hf'):
        raise ValueError(f"to={to!r}, expected 'mcbeit', 'timm' or 'hf'")
    official = to_official(state_dict)
    state = drop_copied_tables(official.backbone | official.heads)
    state = {k: v for k, v in state.items() if not k.endswith(INDEX)}
    if to == 'timm':
        state = copy_shared_table(state)
    elif to == 'hf':
        state = to_hf(state)
    return state | official.rest


def detect(names: Iterable[str]) -> tuple[str, str] | None:
    """Find dialect and prefix of the vision transformer among the names; None without one.

    Raises:
        ValueError: several transformers, none with a prefix in PREFERRED_PREFIXES.
    """
    found = {}
    for name in names:
        for dialect, kind in DIALECTS.items():
            prefix = name.removesuffix(kind.anchor)
            if prefix != name and (not prefix or prefix.endswith('.')):
                found.setdefault(prefix, dialect)
    chosen = [p for p in PREFERRED_PREFIXES if p in found] if len(found) > 1 else list(found)
    if found and not chosen:
        raise ValueError(
            f'several transformers, with the prefixes {sorted(found)}: keep one of them, for '
            'example {k: v for k, v in state.items() if k.startswith(prefix)}'
        )
    return (found[chosen[0]], chosen[0]) if chosen else None


def to_official(state: Mapping[str, Tensor]) -> Official:
    """Give weights of any known dialect and prefix their official names, without loss."""
    dialect, prefix = detect(state) or (None, '')
    outer = prefix.removesuffix('beit.')  # transformers keeps heads and their norm outside
    backbone, heads, rest = {}, {}, {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition('.')
        head = HEADS.get(stem) or HEADS.get(stem.removeprefix(outer))
        if head and kind in ('weight', 'bias'):
            _put(heads, f'{head}.{kind}', tensor)
        elif outer != prefix and stem == f'{outer}layernorm':
            _put(backbone, f'norm.{kind}', tensor)
        elif not name.startswith(prefix):
            rest[name] = tensor
        else:
            name = name.removeprefix(prefix)
            official = DIALECTS[dialect].rename(name, to_official=True) if dialect else name
            _put(backbone, official, tensor)
    if dialect and DIALECTS[dialect].qkv:
        backbone = _fuse_qkv(backbone, DIALECTS[dialect].qkv)
    return Official(backbone, heads, rest, dialect, prefix)


def to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official weights, heads included, as transformers stores them in files.

    With `lm_head` the norm stays outside `beit.`, as in the models that Microsoft published with
    `use_mean_pooling=True`.
    """
    hf, out = DIALECTS['hf'], {}
    outside = {'head': 'classifier', 'lm_head': 'lm_head'}
    if 'lm_head.weight' in state:
        outside['norm'] = 'layernorm'
    for name, tensor in state.items():
        stem, _, kind = name.rpartition('.')
        if stem in outside:
            out[f'{outside[stem]}.{kind}'] = tensor
        elif stem.endswith('attn.qkv') and kind == 'weight':
            block = hf.rename(stem.removesuffix('attn.qkv'), to_official=False)
            for part, piece in zip(hf.qkv, tensor.chunk(3), strict=True):
                out[f'beit.{block}{part}'] = piece
        else:
            out[f'beit.{hf.rename(name, to_official=False)}'] = tensor
    return out


def num_blocks(state: Mapping[str, Tensor]) -> int:
    """Count the blocks in official weights."""
    return len({name.split('.')[1] for name in state if name.startswith('blocks.')})


def copy_shared_table(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a copy of the shared position table for every block; keep the shared one."""
    if SHARED_TABLE not in state:
        return dict(state)
    names = (f'blocks.{i}.{BLOCK_TABLE}' for i in range(num_blocks(state)))
    return dict(state) | {name: state[SHARED_TABLE].clone() for name in names}


def drop_copied_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `copy_shared_table`: remove block tables if all of them equal the shared one."""
    shared = state.get(SHARED_TABLE)
    tables = [name for name in state if re.fullmatch(rf'blocks\.\d+\.{BLOCK_TABLE}', name)]
    if shared is None or not all(torch.equal(state[name], shared) for name in tables):
        return dict(state)
    return {name: tensor for name, tensor in state.items() if name not in tables}


def _replace_start(name: str, names: Mapping[str, str], to_official: bool) -> str:
    """Replace the leading modules of a dotted name."""
    for official, own in names.items():
        here, there = (own, official) if to_official else (official, own)
        if name == here or name.startswith(f'{here}.'):
            return there + name[len(here) :]
    return name


def _put(state: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in state and not torch.equal(state[name], tensor):
        raise ValueError(f'the checkpoint has two different tensors for {name}: remove one of them')
    state[name] = tensor


def _fuse_qkv(state: Mapping[str, Tensor], parts: tuple[str, str, str]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        if name.endswith(parts[0]):
            block = name.removesuffix(parts[0])
            out[f'{block}attn.qkv.weight'] = torch.cat([state[block + part] for part in parts])
        elif not name.endswith(parts):
            out[name] = tensor
    return out
