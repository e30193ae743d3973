"""Checkpoint + image folder -> accuracy of every block, pretrained and untrained."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from ..weights.reading import read_checkpoint, state_dict_of
from .features import extract_features, folder_datasets, ordered_loader, score_layers

METHODS = {'knn': 'k-NN', 'linear': 'linear probe'}


def evaluate_blocks(
    model: Mapping[str, Any],
    checkpoint: Path | None,
    data: str | Path,
    *,
    random_init: bool = False,
    layers: Sequence[int] | None = None,
    img_size: int | None = None,
    k: int = 20,
    max_train: int | None = None,
    batch_size: int = 128,
    num_workers: int = 4,
    device: str | None = None,
    bf16: bool = False,
) -> dict[str, Any]:
    """k-NN and linear-probe accuracy of the blocks of a pretrained backbone.

    Args:
        model: config of a pretraining model.
        checkpoint: its weights; None measures only untrained ones.
        data: folder with train/ and val/, see `folder_datasets`.
        random_init: measure untrained weights as well.
        layers: blocks, negative from the end; default: all.
        img_size: pixels after the crop; default: the backbone's.
        device: default: 'cuda' if available, else 'cpu'.

    Returns:
        `data` (sizes), `k`, and `models`, by 'checkpoint' and 'random init': `blocks` with the
        scores of `score_layers`, and per method the `chosen` one, the best on held-out images.
    """
    if not {'backbone', 'data_preprocessor'} <= set(model):
        raise ValueError('the model has no backbone (a tokenizer?): expected a pretraining run')
    weights = {'checkpoint': state_dict_of(read_checkpoint(checkpoint))} if checkpoint else {}
    views, size = model['data_preprocessor'], img_size or model['backbone'].get('img_size', 224)
    datasets = folder_datasets(
        data, size, views['mean'], views['std'], views.get('to_rgb', False), max_train
    )
    if random_init or not checkpoint:
        weights['random init'] = None
    backbones = {name: build_backbone(model['backbone'], w) for name, w in weights.items()}
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    models = {}
    for name, backbone in backbones.items():
        parts = []
        for dataset in datasets:
            start = time.time()
            loader = ordered_loader(dataset, batch_size, num_workers)
            parts.append(extract_features(backbone.to(device), loader, device, layers, bf16))
            print(f'{len(dataset)} images in {time.time() - start:.0f} s', file=sys.stderr)
        numbers = range(backbone.num_layers)
        numbers = numbers if layers is None else sorted({numbers[i] for i in layers})
        blocks = dict(zip(numbers, score_layers(*parts, k, device), strict=True))
        chosen = {m: max(blocks, key=lambda i, m=m: blocks[i][f'{m}_held_out']) for m in METHODS}
        models[name] = dict(chosen=chosen, blocks=blocks)
    sizes = dict(zip(('train', 'val'), map(len, datasets), strict=True))
    data = dict(root=str(data), **sizes, classes=len(datasets[0].CLASSES))
    return dict(data=data, k=k, models=models)


def build_backbone(cfg: Mapping[str, Any], state_dict: Mapping | None) -> nn.Module:
    """Build an MCBEiTViT; load all `backbone.*` tensors of a state dict, if given."""
    if cfg['type'] != 'MCBEiTViT':
        raise ValueError(f'expected the backbone MCBEiTViT, got {cfg["type"]}')
    torch.manual_seed(0)
    backbone = MODELS.build(dict(cfg))
    if state_dict is None:
        return backbone
    prefix = 'backbone.'
    weights = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not weights:
        raise ValueError(f'the checkpoint has no backbone.* tensors, got {list(state_dict)[:3]}')
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f'the weights do not fit the config: {error}') from error
    return backbone


def as_markdown(models: Mapping[str, Mapping]) -> str:
    """Table of `models` of `evaluate_blocks`: a row per block, two columns per model."""
    columns = [(model, method) for model in models.values() for method in METHODS]
    titles = [f'{title} ({name})' for name in models for title in METHODS.values()]
    rows = [['block', *titles], ['---:'] * (1 + len(titles))]
    for number in columns[0][0]['blocks']:
        rows.append([str(number), *(f'{m["blocks"][number][key]:.2f}' for m, key in columns)])
    chosen = [(m['chosen'][key], m['blocks'][m['chosen'][key]][key]) for m, key in columns]
    rows.append(['chosen', *(f'{accuracy:.2f} (block {number})' for number, accuracy in chosen)])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
