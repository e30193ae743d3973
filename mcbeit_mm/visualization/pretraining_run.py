"""Load the model and images of a pretraining run from its work dir."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import CustomDataset
from torch import Tensor, nn

from ..config import launch
from ..config.checks.classes import innermost_dataset
from ..engine import resume
from ..mcbeit import MCBEiT
from ..weights.reading import read_checkpoint, state_dict_of
from .logs import newest


@dataclass(frozen=True)
class PretrainingRun:
    """Config, checkpoint and trained model of a work dir."""

    config_file: Path
    cfg: Config
    checkpoint_file: Path
    epoch: int | None
    model: MCBEiT


def load_run(
    work_dir: Path, checkpoint: Path | None, device: str, cfg_options: Sequence[str] = ()
) -> PretrainingRun:
    """Build the model of a work dir with its newest checkpoint, or with the given one.

    ValueError if the checkpoint does not fit the config or was trained with another tokenizer.
    """
    config_file = newest(work_dir, '*.py')
    cfg = launch.load_config(str(config_file), cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    file = resume.find_checkpoint(checkpoint or work_dir)
    model, meta = load_model(cfg, file)
    trained, given = meta.get('tokenizer'), model.tokenizer.identity
    if trained and trained['sha256'] != given['sha256']:
        raise ValueError(
            f'the run used tokenizer {trained["checkpoint"]} ({trained["sha256"][:12]}), got '
            f'{given["checkpoint"]} ({given["sha256"][:12]}): set '
            '--cfg-options model.target_generator.checkpoint=...'
        )
    return PretrainingRun(config_file, cfg, file, meta.get('epoch'), model.to(device))


def load_model(cfg: Config, file: Path) -> tuple[nn.Module, dict]:
    """Build the model of a config with all weights of a checkpoint; return its meta as well."""
    model_cfg = copy.deepcopy(cfg.model)
    model_cfg.backbone.init_cfg = None
    model, checkpoint = MODELS.build(model_cfg), read_checkpoint(file)
    try:
        model.load_state_dict(state_dict_of(checkpoint))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'{file} does not fit the config: {str(error)[:400]}') from error
    return model, checkpoint.get('meta', {})


def image_folder(cfg: Config, root: Path | None = None) -> Path:
    """Return the image folder: `root` or the config's training images, preferably their val/."""
    folder = root
    if folder is None:
        dataset = innermost_dataset(cfg.train_dataloader.dataset)
        prefix = dataset.get('data_prefix') or ''
        prefix = prefix if isinstance(prefix, str) else prefix['img_path']
        folder = Path(dataset.get('data_root') or '', prefix)
    train = root is None and folder.name == 'train'
    for choice in ((folder.parent if train else folder) / 'val', folder):
        if choice.is_dir():
            return choice
    raise FileNotFoundError(f'no image folder {folder}: set --data')


def load_batches(
    run: PretrainingRun, folder: Path, num_images: int
) -> list[tuple[list[Tensor], Tensor]]:
    """Load batches (inputs, masks) of a fixed random choice of images, with the run's own masks."""
    pipeline = []
    for step in innermost_dataset(run.cfg.train_dataloader.dataset)['pipeline']:
        if step['type'] == 'TwoViewRandomResizedCrop':  # the largest centered square
            step = dict(step, scale=(1, 1), ratio=(1, 1), flip_prob=0)
        if step['type'] != 'RandomFlip':
            pipeline.append(step)
    try:
        dataset = CustomDataset(data_root=str(folder), with_label=False, pipeline=pipeline)
    except RuntimeError as error:
        raise ValueError(f'no images in {folder}') from error
    np.random.seed(0)  # of the choice and of the masks
    dataset.get_subset_(np.random.permutation(len(dataset))[:num_images].tolist())
    batches = []
    for start in range(0, len(dataset), 32):
        samples = [dataset[i] for i in range(start, min(start + 32, len(dataset)))]
        data = run.model.data_preprocessor(default_collate(samples))
        batches.append((data['inputs'], torch.stack([s.mask for s in data['data_samples']])))
    return batches
