"""Checkpoint + image folder -> accuracy of every block, pretrained and untrained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

from ..weights.fitting import load_state
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
    if model.get('backbone', {}).get('type') != 'MCBEiTViT':
        raise ValueError(
            f'expected a pretraining model with the backbone MCBEiTViT, got {model.get("type")} '
            f'with {model.get("backbone", {}).get("type")}'
        )
    backbones = {'checkpoint': build_backbone(model['backbone'], checkpoint)} if checkpoint else {}
    if random_init or not checkpoint:
        backbones['random init'] = build_backbone(model['backbone'])
    views, size = model['data_preprocessor'], img_size or model['backbone'].get('img_size', 224)
    datasets = folder_datasets(
        data, size, views['mean'], views['std'], views.get('to_rgb', False), max_train
    )
    loaders = [ordered_loader(dataset, batch_size, num_workers) for dataset in datasets]
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    models = {
        name: measure(backbone.to(device), loaders, layers, k, device, bf16)
        for name, backbone in backbones.items()
    }
    train, val = map(len, datasets)
    data = dict(root=str(data), train=train, val=val, classes=len(datasets[0].CLASSES))
    return dict(data=data, k=k, models=models)


def measure(
    backbone: nn.Module,
    loaders: Sequence[DataLoader],
    layers: Sequence[int] | None,
    k: int,
    device: str,
    bf16: bool,
) -> dict[str, Any]:
    """Scores of the blocks by number, and per method the best one on held-out images."""
    parts = [extract_features(backbone, loader, device, layers, bf16) for loader in loaders]
    numbers = range(backbone.num_layers)
    numbers = numbers if layers is None else sorted({numbers[i] for i in layers})
    blocks = dict(zip(numbers, score_layers(*parts, k, device), strict=True))
    chosen = {m: max(blocks, key=lambda i, m=m: blocks[i][f'{m}_held_out']) for m in METHODS}
    return dict(chosen=chosen, blocks=blocks)


def build_backbone(cfg: Mapping[str, Any], checkpoint: Path | None = None) -> nn.Module:
    """Build a backbone; load all its weights from a checkpoint of any known naming, if given."""
    torch.manual_seed(0)
    backbone = MODELS.build(dict(cfg))
    if checkpoint:
        weights = state_dict_of(read_checkpoint(checkpoint))
        report = load_state(backbone, weights, min_match=1, source_grid=None)
        if report.fresh:  # the final norm, which only fine-tuning may initialize
            raise ValueError(f'{checkpoint}: {report}, expected all tensors of the backbone')
    return backbone


def as_markdown(result: Mapping[str, Any]) -> str:
    """Table of `evaluate_blocks`: a row per block, two columns per model, and what was measured."""
    models, data = result['models'], result['data']
    columns = [(model, method) for model in models.values() for method in METHODS]
    titles = [f'{title} ({name})' for name in models for title in METHODS.values()]
    rows = [['block', *titles], ['---:'] * (1 + len(titles))]
    for number in columns[0][0]['blocks']:
        rows.append([str(number), *(f'{m["blocks"][number][key]:.2f}' for m, key in columns)])
    chosen = [(m['chosen'][key], m['blocks'][m['chosen'][key]][key]) for m, key in columns]
    rows.append(['chosen', *(f'{accuracy:.2f} (block {number})' for number, accuracy in chosen)])
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    return (
        f'{table}\n\nTop-1 in % on {data["val"]} images of {data["classes"]} classes, '
        f'{data["train"]} for training; k = {result["k"]}. Blocks are chosen on a tenth of the '
        'training images.'
    )
