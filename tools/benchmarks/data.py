"""Photographs -> batches of two views and masks: Pillow against the pretraining pipeline.

All sides run on one core and draw the same flips, crops and masks. `plain` is Pillow and torchvision
without a pipeline, `OpenMMLab` the same work as steps of an mmpretrain pipeline. `ours, scaled`
decodes JPEGs at a part of their size, as the photo config does; its crops are other draws of the
same distribution.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.measure import ROOT, Case
from benchmarks.photos import SEED, photo_folder, photo_paths
from mcbeit_mm.datasets.seeded_data import SAMPLES, SeededDataset, seed_generators

CONFIG = 'configs/_base_/datasets/imagenet_bs128_mcbeit.py'
SCALED = 'configs/pretrain/mcbeit_vit-small-p16_1xb256-bf16-coslr-300e_photos.py'
LARGE = 8  # tiles along the sides of a photo of 12 megapixels


def cases(device: str, quick: bool) -> list[Case]:
    name = 'data, {} JPEG to two views and a mask'
    small = dict(count=4 if quick else 32, tiles=1)
    large = dict(count=1 if quick else 4, tiles=LARGE)
    return [
        Case(
            name.format('500x375'),
            build,
            small,
            sides=('plain', 'OpenMMLab', 'ours'),
            items=small['count'],
            goal=0.5,
            computes=False,
        ),
        Case(
            name.format('12-megapixel'),
            build,
            large,
            sides=('plain', 'ours', 'ours, scaled'),
            items=large['count'],
            computes=False,
        ),
    ]


def build(side: str, device: str, count: int, tiles: int) -> Callable[[], object]:
    """One batch on one core, as in a DataLoader worker."""
    folder = photo_folder(count, tiles)
    read = pillow_batch if side == 'plain' else pipeline_batch
    source = photo_paths(folder) if side == 'plain' else dataset_of(side, folder)

    def run() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return read(source)
        finally:
            torch.set_num_threads(threads)

    return run


def dataset_of(side: str, folder: Path) -> SeededDataset:
    """The data set of a pretraining config; for OpenMMLab with decoding and views by Pillow."""
    config = Config.fromfile(ROOT / (SCALED if 'scaled' in side else CONFIG))
    data = dict(config.train_dataloader.dataset, data_root=str(folder), _scope_='mmpretrain')
    if side == 'OpenMMLab':
        data['pipeline'] = [
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            dict(type='RandomFlip', prob=0.5),
            pillow_step,
            dict(type='RandomPatchMask', grid_size=14, mask_ratio=0.75),
            dict(type='PackInputs'),
        ]
    return SeededDataset(DATASETS.build(data), SEED)


def pillow_step(results: dict) -> dict:
    views = pillow_views(Image.fromarray(results['img']), flip=False)
    return dict(results, img=[np.array(view) for view in views])


def pipeline_batch(dataset: SeededDataset) -> dict:
    return default_collate([dataset[place, (0, place)] for place in range(len(dataset))])


def pillow_batch(paths: list[Path]) -> list[Tensor]:
    """Student views, tokenizer views and masks."""
    samples = [pillow_sample(path, place) for place, path in enumerate(paths)]
    return [torch.stack(column) for column in zip(*samples, strict=True)]


def pillow_sample(path: Path, place: int) -> list[Tensor]:
    seed_generators(SAMPLES, SEED, 0, place, 0)  # as SeededDataset
    image = Image.open(path).convert('RGB')
    views = pillow_views(image, np.random.random() < 0.5)  # the draw of RandomFlip
    mask = np.zeros(196, dtype=bool)
    mask[np.random.permutation(196)[:147]] = True
    return [*map(pil_to_tensor, views), torch.from_numpy(mask.reshape(14, 14))]


def pillow_views(image: Image.Image, flip: bool) -> tuple[Image.Image, Image.Image]:
    """Views of 224 and 112 pixels."""
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    crop = image.crop((left, top, left + width, top + height))
    kinds = Image.Resampling
    return crop.resize((224, 224), kinds.BICUBIC), crop.resize((112, 112), kinds.LANCZOS)
