"""Writing weights for other libraries: this package and timm as one file, transformers as a folder.

Weights are in official names throughout, see `weight_names`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .names import BLOCK_TABLE, SHARED_TABLE, convert, num_blocks, to_official
from .positions import embedding_grid, table_grid

HEAD_DIMS = 64  # of every BEiT; for weights without position tables, which would tell the heads


def strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what only pretraining needs: mask token, token head, tables and norms made obsolete."""
    obsolete = ['mask_token', 'lm_head.']
    if f'blocks.0.{BLOCK_TABLE}' in state:
        obsolete.append(SHARED_TABLE)
    if 'fc_norm.weight' in state:
        obsolete.append('norm.')
    return {name: tensor for name, tensor in state.items() if not name.startswith(tuple(obsolete))}


def read_label_order(path: str | Path) -> list[str]:
    """Read WordNet ids, one per class index; ValueError if they are anything else."""
    ids = Path(path).read_text().split()
    wrong = [name for name in ids if not re.fullmatch(r'n\d{8}', name)]
    if wrong or not ids or len(set(ids)) != len(ids):
        raise ValueError(
            f'{path}: expected different WordNet ids such as n01440764, one per class, got '
            f'{wrong[:3] or f"{len(ids)}, {len(set(ids))} of them different"}'
        )
    return ids


def sort_labels(state: Mapping[str, Tensor], ids: Sequence[str]) -> dict[str, Tensor]:
    """Put the rows of the class head from the order of `ids` into that of sorted WordNet ids."""
    head = state.get('head.weight')
    if head is None or len(head) != len(ids):
        got = 'has no class head' if head is None else f'has {len(head)} classes'
        raise ValueError(f'the checkpoint {got}, the label order {len(ids)}')
    order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))
    heads = {name: state[name][order] for name in ('head.weight', 'head.bias') if name in state}
    return dict(state) | heads


def hf_config(state: Mapping[str, Tensor], labels: Sequence[str] | None = None) -> dict:
    """Config of transformers' BEiT for official weights, sizes read off the tensors."""
    table = state.get(SHARED_TABLE, state.get(f'blocks.0.{BLOCK_TABLE}'))
    dims = state['cls_token'].shape[-1]
    _, channels, _, patch = state['patch_embed.proj.weight'].shape
    grid = (14, 14)
    if table is not None:
        grid = table_grid(len(table))
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


def write(
    state: Mapping[str, Tensor],
    path: str | Path,
    to: str,
    labels: Sequence[str] | None = None,
    stripped: bool = False,
) -> dict[str, Tensor]:
    """Write weights of any known naming; returns them as written.

    Args:
        path: a file, safetensors by its suffix, else of `torch.save`; for 'hf' a folder.
        to: see `checkpoint.convert`. For timm and Hugging Face only the transformer and its heads
            are written.
        labels: WordNet ids by class index of the source; the classes are written in their order.
        stripped: see `strip`.

    Raises:
        ValueError: there is no vision transformer, or its classes are not those of `labels`.
    """
    official = to_official(state)
    if official.dialect is None:
        raise ValueError(f'no vision transformer among the names {list(state)[:5]}, ...')
    state = convert(official.backbone | official.heads, 'timm' if to == 'timm' else 'mcbeit')
    if labels:
        state, labels = sort_labels(state, labels), sorted(labels)
    state = strip(state) if stripped else state
    path = Path(path)
    if to == 'hf':
        path.mkdir(parents=True, exist_ok=True)
        (path / 'config.json').write_text(json.dumps(hf_config(state, labels), indent=2) + '\n')
        state, path = convert(state, 'hf'), path / 'model.safetensors'
    elif to == 'mcbeit':
        state |= official.rest
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    _save(state, path, wrapped=to == 'mcbeit')
    return state


def _save(state: dict[str, Tensor], path: Path, wrapped: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(state, path, metadata={'format': 'pt'})
    else:
        torch.save({'state_dict': state} if wrapped else state, path)
