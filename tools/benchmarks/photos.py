"""Photographs of the data benchmark: JPEGs cut from those of scikit-learn and scikit-image."""

import atexit
import shutil
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from mcbeit_mm.datasets.demo.scenes import require

PHOTOS = {  # color, larger than 500 x 375
    'sklearn': ('datasets/images/china.jpg', 'datasets/images/flower.jpg'),
    'skimage': ('data/coffee.png', 'data/motorcycle_left.png', 'data/rocket.jpg')
    + ('data/astronaut.png', 'data/hubble_deep_field.jpg'),
}
WIDTH, HEIGHT, QUALITY = 500, 375, 90
SEED = 0


@cache
def photo_folder(count: int, tiles: int = 1) -> Path:
    """A data_root with `count` photos below train/, deleted when the process ends.

    Each is a mosaic of `tiles` x `tiles` pieces of 500 x 375 pixels, none of them resized: bundled
    photographs are small, and enlarged ones have no detail at the scale of a pixel.
    """
    rng = np.random.default_rng(SEED)
    roots = {package: Path(require(package).__file__).parent for package in PHOTOS}
    files = [roots[package] / name for package, names in PHOTOS.items() for name in names]
    sources = cycle([Image.open(file).convert('RGB') for file in files])
    folder = Path(mkdtemp(prefix='mcbeit_photos_'))
    atexit.register(shutil.rmtree, folder)
    (folder / 'train').mkdir()
    for number in range(count):
        photo = Image.new('RGB', (tiles * WIDTH, tiles * HEIGHT))
        for row, column in np.ndindex(tiles, tiles):
            source = next(sources)
            left = int(rng.integers(source.width - WIDTH + 1))
            top = int(rng.integers(source.height - HEIGHT + 1))
            piece = source.crop((left, top, left + WIDTH, top + HEIGHT))
            photo.paste(piece, (column * WIDTH, row * HEIGHT))
        photo.save(folder / 'train' / f'{number:04}.jpg', quality=QUALITY)
    return folder


def photo_paths(folder: Path) -> list[Path]:
    return sorted((folder / 'train').iterdir())
