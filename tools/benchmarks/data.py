"""Photographs -> batches of two views and masks: Pillow's ways against the pretraining pipeline.

One core, 500 x 375 photographs as JPEG of quality 90, cut from those that scikit-learn and
scikit-image carry. All sides draw the same flips, crops and masks:
    plain        the steps of an OpenMMLab pipeline, decoding and resizing by Pillow
    torchvision  Pillow images throughout, normalised floats at the end, as the authors' data set
    bare Pillow  the same, but 8-bit pixels at the end, as ours
    ours         the data set of the pretraining config
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import normalize, pil_to_tensor, to_tensor

from benchmarks.measure import Case, Fact
from mcbeit_mm.digit_scenes import require
from mcbeit_mm.images import read_image
from mcbeit_mm.seeded_data import SAMPLES, SeededDataset, seed_generators
from mcbeit_mm.transforms import TwoViewRandomResizedCrop

CONFIG = 'configs/_base_/datasets/imagenet_bs128_mcbeit.py'
PHOTOS = {  # those larger than 500 x 375, in colour
    'sklearn': ('datasets/images/china.jpg', 'datasets/images/flower.jpg'),
    'skimage': ('data/coffee.png', 'data/motorcycle_left.png', 'data/rocket.jpg')
    + ('data/astronaut.png', 'data/hubble_deep_field.jpg'),
}
WIDTH, HEIGHT, QUALITY = 500, 375, 90
SEED = 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Run = Callable[[], object]
Views = tuple[Image.Image, Image.Image]


def cases(device: str, quick: bool) -> list[Case]:
    """The pipeline, and the two parts that cost most."""
    count = 4 if quick else 32
    two, four = ('bare Pillow', 'ours'), ('plain', 'torchvision', 'bare Pillow', 'ours')
    parts = [
        ('pipeline', 'data, 500x375 JPEG to two views and a mask', four, 0.5),
        ('decode', 'data, decoding alone', two, None),
        ('views', 'data, flip, crop and both resizings alone', two, None),
    ]
    return [
        Case(
            name,
            build,
            dict(part=part, count=count),
            sides=sides,
            items=count,
            goal=goal,
            flops=False,
            memory=False,
        )
        for part, name, sides, goal in parts
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
    return [*found, Fact('data, size of a photo', round(float(size), 1), 'KiB', f'{count} photos')]


def build(side: str, device: str, part: str, count: int) -> Run:
    """One repetition is a pass over `count` photos; `device` plays no part."""
    folder = photo_folder(count)
    parts = dict(pipeline=build_pipeline, decode=build_decode, views=build_views)
    run = parts[part](side, folder, count)

    def on_one_core() -> object:
        with one_thread():
            return run()

    return on_one_core


def build_pipeline(side: str, folder: Path, count: int) -> Run:
    if side in ('plain', 'ours'):
        dataset = pipeline(folder) if side == 'ours' else plain_pipeline(folder)
        return lambda: default_collate([dataset[place, (0, place)] for place in range(count)])
    paths, to_tensors = photo_paths(folder), as_pixels if side == 'bare Pillow' else as_floats
    return lambda: pillow_batch(paths, to_tensors)


def build_decode(side: str, folder: Path, count: int) -> Run:
    paths = photo_paths(folder)
    if side == 'bare Pillow':
        return lambda: [Image.open(path).convert('RGB').size for path in paths]
    return lambda: [read_image(path.read_bytes()).shape for path in paths]


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


def pipeline(folder: Path, **settings) -> SeededDataset:
    """The data set of the pretraining config; `settings` are of its two-view crop."""
    config = Config.fromfile(Path(__file__).parents[2] / CONFIG).train_dataloader.dataset
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


@cache
def _folder(count: int) -> TemporaryDirectory:
    """Write `count` photos, cut from the bundled ones at random places."""
    sources, rng = [], np.random.default_rng(SEED)
    for package, names in PHOTOS.items():
        root = Path(require(package).__file__).parent
        sources += [Image.open(root / name).convert('RGB') for name in names]
    folder = TemporaryDirectory(prefix='mcbeit_photos_')
    (Path(folder.name) / 'train').mkdir()
    for number, source in enumerate(islice(cycle(sources), count)):
        left = int(rng.integers(source.width - WIDTH + 1))
        top = int(rng.integers(source.height - HEIGHT + 1))
        photo = source.crop((left, top, left + WIDTH, top + HEIGHT))
        photo.save(Path(folder.name) / 'train' / f'{number:04}.jpg', quality=QUALITY)
    return folder


def photo_folder(count: int) -> Path:
    """A data_root with `count` photos below train/, deleted when the process ends."""
    return Path(_folder(count).name)


def photo_paths(folder: Path) -> list[Path]:
    return sorted((folder / 'train').iterdir())


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a DataLoader's worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
