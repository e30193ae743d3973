"""Photographs -> batches of two views and masks: Pillow against the pretraining pipeline.

One core, 500 x 375 photographs as JPEG of quality 90. All sides draw the same flips, crops and
masks:
    plain        the steps of an OpenMMLab pipeline, decoding and resizing by Pillow
    torchvision  Pillow images throughout, normalized floats at the end, as the authors' data set
    bare Pillow  the same, but 8-bit pixels at the end, as ours
    ours         the data set of the pretraining config
and 4000 x 3000 photographs, where another side decodes JPEGs at a part of their size:
    ours, scaled  the data set of the photo config; crops of the same distribution, other draws
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
from torchvision.transforms.functional import normalize, pil_to_tensor, to_tensor

from benchmarks.differences import SCALED, scaled_facts, scaled_steps, summary
from benchmarks.measure import ROOT, Case, Fact
from benchmarks.photos import SEED, photo_folder, photo_paths
from mcbeit_mm.datasets.images import read_image
from mcbeit_mm.datasets.seeded_data import SAMPLES, SeededDataset, seed_generators
from mcbeit_mm.transforms import TwoViewRandomResizedCrop

CONFIG = 'configs/_base_/datasets/imagenet_bs128_mcbeit.py'
LARGE = 8  # tiles along the sides of a photo of 12 megapixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Run = Callable[[], object]
Views = tuple[Image.Image, Image.Image]


def cases(device: str, quick: bool) -> list[Case]:
    """The pipeline, and its two most expensive parts."""
    small, large = (4 if quick else 32, 1), (1 if quick else 4, LARGE)
    two, four = ('bare Pillow', 'ours'), ('plain', 'torchvision', 'bare Pillow', 'ours')
    scaled = (*two, 'ours, scaled', 'ours, scaled for 128 px')
    parts = [
        (build_pipeline, 'data, 500x375 JPEG to two views and a mask', four, 0.5, small),
        (build_decode, 'data, decoding alone', two, None, small),
        (build_views, 'data, flip, crop and both resizings alone', two, None, small),
        (
            build_pipeline,
            'data, 12-megapixel JPEG to two views and a mask',
            scaled[:3],
            None,
            large,
        ),
        (build_decode, 'data, 12-megapixel JPEG, decoding alone', scaled, None, large),
    ]
    return [
        Case(name, build, dict(count=count, tiles=tiles), sides, count, goal, computes=False)
        for build, name, sides, goal, (count, tiles) in parts
    ]


def facts(device: str, quick: bool) -> list[Fact]:
    """Differences of the views from Pillow's, and what decoding at a part of the size changes."""
    count, (large, crops) = (4, (1, 2)) if quick else (56, (4, 50))
    folder = photo_folder(count)
    paths, ours = photo_paths(folder), views_of(pipeline(folder), count)
    others = {
        'Pillow as installed': [
            as_pixels(pillow_sample(path, place)[0]) for place, path in enumerate(paths)
        ],
        'Pillow, rows before columns': views_of(pipeline(folder, backend='pillow'), count),
    }
    found = []
    for name, views in others.items():
        for index, size in enumerate(('224, bicubic', '112, Lanczos')):
            pairs = zip(ours, views, strict=True)
            gaps = torch.stack([(a[index].int() - b[index].int()).abs() for a, b in pairs])
            how = f'{name}; {count} photos, same draws'
            found.append(summary(f'difference from Pillow, {size}', gaps.numpy(), how))
    size = round(np.mean([path.stat().st_size for path in paths]) / 1024, 1)
    found.append(Fact('data, size of a photo', float(size), 'KiB', f'{count} photos'))
    return found + scaled_facts(photo_folder(large, LARGE), crops)


def on_one_core(build: Callable[..., Run]) -> Callable[..., Run]:
    """Let what a builder returns run as in a DataLoader's worker."""

    def build_single(side: str, device: str, count: int, tiles: int) -> Run:
        run = build(side, photo_folder(count, tiles), count)

        def single() -> object:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return run()
            finally:
                torch.set_num_threads(threads)

        return single

    return build_single


@on_one_core
def build_pipeline(side: str, folder: Path, count: int) -> Run:
    if side in ('torchvision', 'bare Pillow'):
        paths, to_tensors = photo_paths(folder), as_pixels if side == 'bare Pillow' else as_floats
        return lambda: pillow_batch(paths, to_tensors)
    if side == 'plain':
        dataset = plain_pipeline(folder)
    else:
        dataset = pipeline(folder, CONFIG if side == 'ours' else SCALED[224])
    return lambda: default_collate([dataset[place, (0, place)] for place in range(count)])


@on_one_core
def build_decode(side: str, folder: Path, count: int) -> Run:
    paths = photo_paths(folder)
    if side == 'bare Pillow':
        return lambda: [Image.open(path).convert('RGB').size for path in paths]
    enough = None
    if 'scaled' in side:
        enough = scaled_steps(128 if '128' in side else 224)[0].enough_pixels
    return lambda: [read_image(p.read_bytes(), enough_pixels=enough).shape for p in paths]


@on_one_core
def build_views(side: str, folder: Path, count: int) -> Run:
    images = [Image.open(path).convert('RGB') for path in photo_paths(folder)]
    if side == 'bare Pillow':
        return lambda: [pillow_views(image, bool(i % 2)) for i, image in enumerate(images)]
    transform = TwoViewRandomResizedCrop()
    arrays = [np.array(image) for image in images]
    arrays = [np.flip(array, 1) if i % 2 else array for i, array in enumerate(arrays)]
    return lambda: [transform(dict(img=array))['img'] for array in arrays]


def pillow_batch(paths: list[Path], to_tensors: Callable[[Views], list[Tensor]]) -> list[Tensor]:
    samples = [pillow_sample(path, place) for place, path in enumerate(paths)]
    tensors = [[*to_tensors(views), torch.from_numpy(mask)] for views, mask in samples]
    return [torch.stack(column) for column in zip(*tensors, strict=True)]


def as_floats(views: Views) -> list[Tensor]:
    student, tokenizer_view = map(to_tensor, views)
    return [normalize(student, MEAN, STD), tokenizer_view]


def as_pixels(views: Views) -> list[Tensor]:
    return [pil_to_tensor(view) for view in views]


def pillow_sample(path: Path, place: int) -> tuple[Views, np.ndarray]:
    """Views of 224 and 112 pixels, and a mask (14, 14)."""
    seed_generators(SAMPLES, SEED, 0, place, 0)  # as SeededDataset
    image = Image.open(path).convert('RGB')
    views = pillow_views(image, np.random.random() < 0.5)  # the draw of RandomFlip
    mask = np.zeros(196, dtype=bool)
    mask[np.random.permutation(196)[:147]] = True
    return views, mask.reshape(14, 14)


def pillow_views(image: Image.Image, flip: bool) -> Views:
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    crop = image.crop((left, top, left + width, top + height))
    kinds = Image.Resampling
    return crop.resize((224, 224), kinds.BICUBIC), crop.resize((112, 112), kinds.LANCZOS)


def pipeline(folder: Path, config: str = CONFIG, **settings) -> SeededDataset:
    """The data set of a pretraining config, its two-view crop with other `settings`."""
    data = Config.fromfile(ROOT / config).train_dataloader.dataset
    data.data_root = str(folder)
    for step in data.pipeline:
        if step.type == 'TwoViewRandomResizedCrop':
            step.update(settings)
    return SeededDataset(DATASETS.build(dict(data, _scope_='mmpretrain')), SEED)


def plain_pipeline(folder: Path) -> SeededDataset:
    """The same data set with Pillow's decoding and resizing."""
    data = Config.fromfile(ROOT / CONFIG).train_dataloader.dataset
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow')
    _, flip, _, *rest = data.pipeline
    data = dict(data, data_root=str(folder), pipeline=[load, flip, arrays_of_views, *rest])
    return SeededDataset(DATASETS.build(dict(data, _scope_='mmpretrain')), SEED)


def arrays_of_views(results: dict) -> dict:
    views = pillow_views(Image.fromarray(results['img']), flip=False)
    return dict(results, img=[np.array(view) for view in views])


def views_of(dataset: SeededDataset, count: int) -> list[list[Tensor]]:
    """Both views of each photo, in RGB."""
    samples = (dataset[place, (0, place)] for place in range(count))
    return [[view.flip(0) for view in sample['inputs']] for sample in samples]
