"""Write weights for other libraries: one file for this package and timm, a folder for transformers.

Weights are under official names throughout, see `names`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..fileio.pins import split_pin
from ..layers.blocks import check_choice
from ..layers.rel_pos import NUM_CLS_ROWS
from .names import BLOCK_TABLE, SHARED_TABLE, convert, num_blocks, to_official
from .positions import embedding_grid, table_grid
from .reading import read_checkpoint, state_dict_of

HEAD_DIMS = 64  # in every BEiT; for weights without tables (a table has one column per head)
TARGETS = ('mcbeit', 'timm', 'hf')
SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


def convert_file(
    src: str,
    dst: str | Path,
    to: str,
    label_order: str | Path | None = None,
    strip: bool = False,
) -> str:
    """Convert a checkpoint for this package, timm or transformers; return a summary.

    Args:
        src: whatever `read_checkpoint` reads.
        dst, to, strip: see `write`.
        label_order: file of WordNet ids by class index of `src`; sorts the classes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable or unknown weights, wrong labels, or an unsuitable destination.
    """
    check_choice('to', to, TARGETS)
    source, dst = Path(split_pin(src)[0]), Path(dst)
    if dst.resolve() in (source.resolve(), source.resolve().parent if to == 'hf' else None):
        raise ValueError(f'{dst} is the source itself: choose another destination')
    if (to == 'hf') == (dst.suffix in SUFFIXES):
        expected = 'a folder' if to == 'hf' else 'a .pth or .safetensors file'
        raise ValueError(f'{to} weights are written to {expected}, got {dst}')
    state = state_dict_of(read_checkpoint(src))
    labels = read_label_order(label_order) if label_order else None
    written = write(state, dst, to, labels, strip)
    _, _, rest, dialect, prefix = to_official(state)
    lines = [f'{source}: {len(state)} tensors, {dialect} names, prefix {prefix!r}']
    if to != 'mcbeit' and rest:
        lines.append(f'skipped {len(rest)} tensors outside the transformer: {list(rest)[:5]}')
    return '\n'.join([*lines, f'{dst}: {len(written)} tensors, {to} names'])


def write(
    state: Mapping[str, Tensor],
    path: str | Path,
    to: str,
    labels: Sequence[str] | None = None,
    strip: bool = False,
) -> dict[str, Tensor]:
    """Write weights of any known naming; return them as written.

    Args:
        path: a folder for 'hf', else a file: safetensors by its suffix, otherwise `torch.save`.
        to: see `convert`; 'timm' and 'hf' get only the transformer and its heads.
        labels: WordNet ids by class index; the classes are written in sorted order.
        strip: see `drop_pretraining_parts`.

    Raises:
        ValueError: no vision transformer, or another number of classes than `labels`.
    """
    check_choice('to', to, TARGETS)
    official = to_official(state)
    if official.dialect is None:
        raise ValueError(f'no vision transformer among the names {list(state)[:5]}, ...')
    state = convert(official.backbone | official.heads, 'timm' if to == 'timm' else 'mcbeit')
    if labels:
        state, labels = sort_labels(state, labels), sorted(labels)
    state = drop_pretraining_parts(state) if strip else state
    path = Path(path)
    if to == 'hf':
        path.mkdir(parents=True, exist_ok=True)
        (path / 'config.json').write_text(json.dumps(hf_config(state, labels), indent=2) + '\n')
        state, path = convert(state, 'hf'), path / 'model.safetensors'
    elif to == 'mcbeit':
        state |= official.rest
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
        save_file(state, path, metadata={'format': 'pt'})
    else:
        torch.save({'state_dict': state} if to == 'mcbeit' else state, path)
    return state


def drop_pretraining_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what only pretraining needs: mask token, token head, unused shared table and norm."""
    obsolete = ['mask_token', 'lm_head.']
    if f'blocks.0.{BLOCK_TABLE}' in state:
        obsolete.append(SHARED_TABLE)
    if 'fc_norm.weight' in state:
        obsolete.append('norm.')
    return {name: tensor for name, tensor in state.items() if not name.startswith(tuple(obsolete))}


def read_label_order(path: str | Path) -> list[str]:
    """Read WordNet ids, one per class index; ValueError for anything else."""
    ids = Path(path).read_text().split()
    wrong = [name for name in ids if not re.fullmatch(r'n\d{8}', name)]
    if wrong or not ids or len(set(ids)) != len(ids):
        raise ValueError(
            f'{path}: expected unique WordNet ids such as n01440764, one per class, got '
            f'{wrong[:3] or f"{len(ids)}, {len(set(ids))} of them unique"}'
        )
    return ids


def sort_labels(state: Mapping[str, Tensor], ids: Sequence[str]) -> dict[str, Tensor]:
    """Sort the rows of the class head by WordNet id; `ids` gives their current order."""
    head = state.get('head.weight')
    if head is None or len(head) != len(ids):
        got = 'no class head' if head is None else f'{len(head)} classes'
        raise ValueError(f'the checkpoint has {got}, the label order {len(ids)} ids')
    order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))
    heads = {name: state[name][order] for name in ('head.weight', 'head.bias') if name in state}
    return dict(state) | heads


def hf_config(state: Mapping[str, Tensor], labels: Sequence[str] | None = None) -> dict:
    """Build the config of transformers' BEiT for official weights from their shapes."""
    table = state.get(SHARED_TABLE, state.get(f'blocks.0.{BLOCK_TABLE}'))
    dims = state['cls_token'].shape[-1]
    _, channels, _, patch = state['patch_embed.proj.weight'].shape
    grid = (14, 14)
    if table is not None:
        grid = table_grid(len(table) - NUM_CLS_ROWS)
    elif 'pos_embed' in state:
        grid = embedding_grid(state['pos_embed'].shape[1])
    pretraining, classes = 'lm_head.weight' in state, state.get('head.weight')
    names = labels or [f'LABEL_{i}' for i in range(0 if classes is None else len(classes))]
    kind = 'Model' if classes is None else 'ForImageClassification'
    config = dict(
        architectures=['BeitForMaskedImageModeling' if pretraining else f'Beit{kind}'],
        model_type='beit',
        hidden_size=dims,
        num_hidden_layers=num_blocks(state),
        num_attention_heads=dims // HEAD_DIMS if table is None else table.shape[1],
        intermediate_size=len(state['blocks.0.mlp.fc1.weight']),
        layer_norm_eps=1e-6,
        layer_scale_init_value=0.1 if 'blocks.0.gamma_1' in state else 0,
        image_size=grid[0] * patch,
        patch_size=patch,
        num_channels=channels,
        use_mask_token='mask_token' in state,
        use_absolute_position_embeddings='pos_embed' in state,
        use_relative_position_bias=f'blocks.0.{BLOCK_TABLE}' in state,
        use_shared_relative_position_bias=SHARED_TABLE in state,
        use_mean_pooling=pretraining or 'fc_norm.weight' in state,
    )
    if pretraining:
        config['vocab_size'] = len(state['lm_head.weight'])
    if names:
        config['id2label'] = dict(enumerate(names))
        config['label2id'] = {name: i for i, name in enumerate(names)}
    return config
