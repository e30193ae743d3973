"""Measure the accuracy of every block of a backbone; format it as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

from ..weights.fitting import load_state
from ..weights.reading import read_checkpoint, state_dict_of
from .features import extract_features, score_layers

METHODS = {'knn': 'k-NN', 'linear': 'linear probe'}


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


def evaluate_backbone(
    backbone: nn.Module,
    loaders: Sequence[DataLoader],
    device: str,
    layers: Sequence[int] | None = None,
    k: int = 20,
    bf16: bool = False,
) -> dict[str, Any]:
    """Measure the features of blocks.

    `loaders` read the train and the val set; other arguments are those of `extract_features`.
    Returns `blocks`, the scores of `score_layers` by block, and `chosen`, the block of each method
    that is best on held-out images.
    """
    parts = [extract_features(backbone, loader, device, layers, bf16) for loader in loaders]
    numbers = range(backbone.num_layers)
    numbers = numbers if layers is None else sorted({numbers[i] for i in layers})
    blocks = dict(zip(numbers, score_layers(*parts, k, device), strict=True))
    chosen = {m: max(blocks, key=lambda i, m=m: blocks[i][f'{m}_held_out']) for m in METHODS}
    return dict(chosen=chosen, blocks=blocks)


def as_markdown(result: Mapping[str, Any]) -> str:
    """Format the result of `evaluate_features`: a row per block, two columns per model, a note."""
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
