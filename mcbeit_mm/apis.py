"""Python API of the tools."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict

from .config import launch
from .engine import resume
from .evaluation.blocks import build_backbone, evaluate_backbone
from .evaluation.features import folder_datasets, ordered_loader
from .visualization.logs import newest


def evaluate_features(
    checkpoint: str | os.PathLike,
    *,
    data: str | os.PathLike,
    config: str | os.PathLike | None = None,
    random_init: bool = False,
    layers: Sequence[int] | None = None,
    img_size: int | None = None,
    k: int = 20,
    max_train: int | None = None,
    batch_size: int = 128,
    num_workers: int = 4,
    device: str | None = None,
    bf16: bool = False,
    out: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Measure k-NN and linear-probe accuracy of the blocks of a pretrained backbone.

    Args:
        checkpoint: work dir of a pretraining run, a checkpoint, or 'random' for untrained weights.
        data: folder with train/ and val/, see `folder_datasets`.
        config: config of the model; default: the one in the work dir.
        random_init: measure untrained weights as well.
        layers: blocks, negative from the end; default: all.
        img_size: pixels after the crop; default: the backbone's.
        device: default: 'cuda' if available, else 'cpu'.
        out: JSON file to write the result to.

    Returns:
        `checkpoint`, `data` (root and sizes), `k`, and `models`, which maps 'checkpoint' and
        'random init' to results of `evaluate_backbone`.
    """
    weights = {} if checkpoint == 'random' else {'checkpoint': resume.find_checkpoint(checkpoint)}
    if random_init or not weights:
        weights['random init'] = None
    model = _model_config(checkpoint, config)
    norm = model.get('data_preprocessor') or {}
    if not {'mean', 'std'} <= set(norm):
        raise ValueError('the config has no model.data_preprocessor with mean and std')
    size = img_size or model.backbone.get('img_size', 224)
    to_rgb = norm.get('to_rgb', False)
    datasets = folder_datasets(data, size, norm.mean, norm.std, to_rgb, max_train)
    loaders = [ordered_loader(dataset, batch_size, num_workers) for dataset in datasets]
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    models = {}
    for name, file in weights.items():
        backbone = build_backbone(model.backbone, file).to(device)
        models[name] = evaluate_backbone(backbone, loaders, device, layers, k, bf16)
    train, val = map(len, datasets)
    sizes = dict(root=str(data), train=train, val=val, classes=len(datasets[0].CLASSES))
    result = dict(checkpoint=str(checkpoint), data=sizes, k=k, models=models)
    if out:
        Path(out).write_text(json.dumps(result, indent=2) + '\n')
    return result


def _model_config(checkpoint: str | os.PathLike, config: str | os.PathLike | None) -> ConfigDict:
    folder = Path(checkpoint).expanduser()
    if not config and not folder.is_dir():
        raise ValueError(f'{str(checkpoint)!r} needs a config (--config): only a work dir has one')
    model = launch.load_config(str(config or newest(folder, '*.py'))).model
    kind = model.get('backbone', {}).get('type')
    if kind != 'MCBEiTViT':
        raise ValueError(
            f'expected a model with the backbone MCBEiTViT, got {model.type} with {kind}'
        )
    return model
