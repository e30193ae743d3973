"""Photographs -> batches of two views and masks: Pillow's ways against the pretraining pipeline.

One core, 500 x 375 photographs as JPEG of quality 90. All sides draw the same flips, crops and
masks:
    plain        the steps of an OpenMMLab pipeline, decoding and resizing by Pillow
    torchvision  Pillow images throughout, normalised floats at the end, as the authors' data set
    bare Pillow  the same, but 8-bit pixels at the end, as ours
    ours         the data set of the pretraining config
and 4000 x 3000 photographs, where a side more decodes JPEGs at a part of their size:
    ours, scaled  the data set of the photo config; crops of the same distribution, other draws
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
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

from benchmarks import scaled_decoding
from benchmarks.measure import Case, Fact
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
    """The pipeline, and the two parts that cost most."""
    small, large = (4 if quick else 32, 1), (1 if quick else 4, LARGE)
    two, four = ('bare Pillow', 'ours'), ('plain', 'torchvision', 'bare Pillow', 'ours')
    scaled = (*two, 'ours, scaled', 'ours, scaled for 128 px')
    parts = [
        ('pipeline', 'data, 500x375 JPEG to two views and a mask', four, 0.5, small),
        ('decode', 'data, decoding alone', two, None, small),
        ('views', 'data, flip, crop and both resizings alone', two, None, small),
        ('pipeline', 'data, 12-megapixel JPEG to two views and a mask', scaled[:3], None, large),
        ('decode', 'data, 12-megapixel JPEG, decoding alone', scaled, None, large),
    ]
    return [
        Case(
            name,
            build,
            dict(part=part, count=count, tiles=tiles),
            sides=sides,
            items=count,
            goal=goal,
            flops=False,
            memory=False,
        )
        for part, name, sides, goal, (count, tiles) in parts
    ]


def facts(device: str, quick: bool) -> list[Fact]:
    """How far the views lie from Pillow's, in levels of 256."""
    count = 4 if quick else 56
    folder = photo_folder(count)
    ours = views_of(pipeline(folder), count)
    paths = photo_paths(folder)
    samples = [pillow_sample(path, place) for place, path in enumerate(paths)]
    others = {
        'Pillow as installed': [as_pixels(views) for views, _ in samples],
        'Pillow, rows before columns': views_of(pipeline(folder, backend='pillow'), count),
    }
    found = []
    for name, views in others.items():
        for index, size in enumerate(('224, bicubic', '112, Lanczos')):
            pairs = zip(ours, views, strict=True)
            gaps = torch.stack([(a[index].int() - b[index].int()).abs() for a, b in pairs])
            how = f'{size}; {name}; {count} photos, same draws'
            found.append(
                Fact('data, largest difference of a pixel', gaps.max().item(), 'levels', how)
            )
            found.append(
                Fact('data, mean difference', round(gaps.float().mean().item(), 4), 'levels', how)
            )
    size = np.mean([path.stat().st_size for path in paths]) / 1024
    found.append(Fact('data, size of a photo', round(float(size), 1), 'KiB', f'{count} photos'))
    count, crops = (1, 2) if quick else (4, 50)
    return found + scaled_decoding.facts(photo_folder(count, LARGE), crops)


def build(side: str, device: str, part: str, count: int, tiles: int) -> Run:
    """One repetition is a pass over `count` photos; `device` plays no part."""
    folder = photo_folder(count, tiles)
    parts = dict(pipeline=build_pipeline, decode=build_decode, views=build_views)
    run = parts[part](side, folder, count)

    def on_one_core() -> object:
        with one_thread():
            return run()

    return on_one_core


def build_pipeline(side: str, folder: Path, count: int) -> Run:
    if side in ('plain', 'ours', 'ours, scaled'):
        config = scaled_decoding.CONFIGS[224] if side == 'ours, scaled' else CONFIG
        dataset = plain_pipeline(folder) if side == 'plain' else pipeline(folder, config)
        return lambda: default_collate([dataset[place, (0, place)] for place in range(count)])
    paths, to_tensors = photo_paths(folder), as_pixels if side == 'bare Pillow' else as_floats
    return lambda: pillow_batch(paths, to_tensors)


def build_decode(side: str, folder: Path, count: int) -> Run:
    paths = photo_paths(folder)
    if side == 'bare Pillow':
        return lambda: [Image.open(path).convert('RGB').size for path in paths]
    enough = None
    if 'scaled' in side:
        enough = scaled_decoding.steps(128 if '128' in side else 224)[0].enough_pixels
    return lambda: [read_image(p.read_bytes(), enough_pixels=enough).shape for p in paths]


def build_views(side: str, folder: Path, count: int) -> Run:
    images = [Image.open(path).convert('RGB') for path in photo_paths(folder)]
    flips = list(islice(cycle((False, True)), count))
    if side == 'bare Pillow':
        pairs = list(zip(images, flips, strict=True))
        return lambda: [pillow_views(image, flip) for image, flip in pairs]
    transform = TwoViewRandomResizedCrop()
    arrays = [np.array(image) for image in images]
    arrays = [np.flip(a, 1) if flip else a for a, flip in zip(arrays, flips, strict=True)]
    return lambda: [transform(dict(img=array))['img'] for array in arrays]


def pillow_batch(paths: list[Path], to_tensors: Callable[[Views], list[Tensor]]) -> list[Tensor]:
    samples = []
    for place, path in enumerate(paths):
        views, mask = pillow_sample(path, place)
        samples.append([*to_tensors(views), torch.from_numpy(mask)])
    return [torch.stack(tensors) for tensors in zip(*samples, strict=True)]


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
    return (
        crop.resize((224, 224), Image.Resampling.BICUBIC),
        crop.resize((112, 112), Image.Resampling.LANCZOS),
    )


def pipeline(folder: Path, config: str = CONFIG, **settings) -> SeededDataset:
    """The data set of a pretraining config; `settings` are of its two-view crop."""
    config = Config.fromfile(Path(__file__).parents[2] / config).train_dataloader.dataset
    config.data_root = str(folder)
    for step in config.pipeline:
        if step.type == 'TwoViewRandomResizedCrop':
            step.update(settings)
    return SeededDataset(DATASETS.build(dict(config, _scope_='mmpretrain')), SEED)


def plain_pipeline(folder: Path) -> SeededDataset:
    steps = [
        dict(type='LoadImageFromFile', imdecode_backend='pillow'),
        dict(type='RandomFlip', prob=0.5),
        arrays_of_views,
        dict(type='RandomPatchMask', grid_size=14, mask_ratio=0.75),
        dict(type='PackInputs'),
    ]
    dataset = dict(
        type='CustomDataset',
        data_root=str(folder),
        data_prefix='train',
        with_label=False,
        pipeline=steps,
        _scope_='mmpretrain',
    )
    return SeededDataset(DATASETS.build(dataset), SEED)


def arrays_of_views(results: dict) -> dict:
    views = pillow_views(Image.fromarray(results['img']), flip=False)
    return dict(results, img=[np.array(view) for view in views])


def views_of(dataset: SeededDataset, count: int) -> list[list[Tensor]]:
    """Both views of each photo, in RGB."""
    samples = (dataset[place, (0, place)] for place in range(count))
    return [[view.flip(0) for view in sample['inputs']] for sample in samples]


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a DataLoader's worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
