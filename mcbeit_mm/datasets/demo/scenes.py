"""Draw the images of the embedded data set: handwritten digits on photographs.

Every pixel comes from installed packages: the digits are scikit-learn's `load_digits` (8x8, UCI
optdigits), the backgrounds photographs from the scikit-learn and scikit-image wheels.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

SPLITS = ('train', 'val')
PHOTOS = {  # package -> (folder in it, photographs); each scene once, none with legible characters
    'sklearn': ('datasets/images', ('china.jpg', 'flower.jpg')),
    'skimage': (
        'data',
        ('astronaut.png', 'brick.png', 'camera.png', 'chelsea.png', 'coffee.png', 'coins.png')
        + ('grass.png', 'gravel.png', 'hubble_deep_field.jpg', 'ihc.png', 'moon.png')
        + ('motorcycle_left.png', 'rocket.jpg'),
    ),
}
LUMINANCE = np.array([0.114, 0.587, 0.299], np.float32)  # of BGR


def require(package: str) -> ModuleType:
    """Import a source package; ImportError says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'the embedded data set needs {package!r}, which cannot be imported ({error}): '
            'pip install scikit-learn scikit-image'
        ) from error


def load_photos(split: str) -> list[np.ndarray]:
    """Load the bundled photographs: the left two thirds of each for train, the rest for val.

    Returns:
        BGR uint8 arrays of various sizes.
    """
    regions = []
    for package, (folder, names) in PHOTOS.items():
        module = require(package)
        for name in names:
            path = Path(module.__file__).parent / folder / name
            if not path.is_file():
                raise FileNotFoundError(
                    f'{path} is not part of {package} {module.__version__}: '
                    'install scikit-learn>=1.4 and scikit-image>=0.24 from their PyPI wheels'
                )
            photo = cv2.imread(str(path), cv2.IMREAD_COLOR)
            cut = photo.shape[1] * 2 // 3
            regions.append(photo[:, :cut] if split == 'train' else photo[:, cut:])
    return regions


def load_digit_samples(split: str, seed: int) -> list[np.ndarray]:
    """Split the 1,797 handwritten digits per class: 80 % for train, 20 % for val.

    Returns:
        Ten arrays (n, 8, 8), float32 ink in [0, 1], indexed by class.
    """
    bunch = require('sklearn.datasets').load_digits()
    rng = np.random.default_rng((seed, 2))  # 0 and 1 seed the images of the splits
    samples = []
    for label in range(10):
        order = rng.permutation(np.flatnonzero(bunch.target == label))
        cut = len(order) * 4 // 5
        chosen = order[:cut] if split == 'train' else order[cut:]
        samples.append((bunch.images[chosen] / 16).astype(np.float32))
    return samples


def _background(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Crop, flip and tone a photograph at random: (size, size, 3) float32 in [0, 255]."""
    longest = min(*photo.shape[:2], 400)
    side = rng.integers(min(96, longest), longest + 1)
    y, x = (rng.integers(0, extent - side + 1) for extent in photo.shape[:2])
    crop = photo[y : y + side, x : x + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = crop.astype(np.float32)
    mean = crop.mean((0, 1))
    # Digits are light: dim bright photographs, and reduce the contrast of those whose texture
    # (standard deviation, of 255) would hide them.
    contrast = rng.uniform(0.4, 0.8) * min(1.0, 42 / max(crop.std(), 1.0))
    exposure = rng.uniform(0.6, 1.0) * min(1.0, 100 / max(mean @ LUMINANCE, 1.0))
    tinted = mean * exposure * rng.uniform(0.9, 1.1, 3)
    return np.clip((crop - mean) * contrast + tinted, 0, 255).astype(np.float32)


def _render(ink: np.ndarray, size: int, side: float, rng: np.random.Generator) -> np.ndarray:
    """Render a digit `side` pixels high in a random pose: opacity (size, size) in [0, 1]."""
    glyph = cv2.resize(np.pad(ink, 2), (96, 96), interpolation=cv2.INTER_CUBIC)  # 8 px per cell
    scale = side / 64
    matrix = cv2.getRotationMatrix2D((47.5, 47.5), rng.uniform(-15, 15), scale)
    matrix[:, 1] += rng.uniform(-0.2, 0.2) * matrix[:, 0]  # shear
    matrix[:, :2] *= np.array([[rng.uniform(0.85, 1.15)], [1.0]])
    margin = 0.57 * side  # half the height plus what rotation adds
    center = rng.uniform(margin, size - margin, 2)
    matrix[:, 2] = center - matrix[:, :2] @ (47.5, 47.5)
    warped = cv2.warpAffine(glyph, matrix, (size, size), flags=cv2.INTER_LINEAR)
    threshold = rng.uniform(0.38, 0.52)  # stroke width
    return np.clip((warped - threshold) * side / 16 + 0.5, 0, 1)  # an edge about two pixels wide


def _color(backdrop: np.ndarray, opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a light BGR color, at least 80 of 255 brighter than the mean the digit covers."""
    covered = float((backdrop @ LUMINANCE * opacity).sum() / opacity.sum())
    target = rng.uniform(min(covered + 80, 235), 250)
    color = rng.uniform(0, 255, 3)
    luminance = color @ LUMINANCE
    if luminance > target:
        return color * (target / luminance)
    return color + (255 - color) * ((target - luminance) / (255 - luminance))


def compose(
    samples: np.ndarray, photos: list[np.ndarray], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Compose one large digit, and up to two small ones behind it, on a crop of a photograph.

    Args:
        samples: (n, 8, 8) ink in [0, 1], all of one class.
        photos: BGR uint8 arrays to crop the background from.
        size: side of the square image in pixels.
        rng: the only source of randomness.

    Returns:
        The image (size, size, 3), BGR uint8, and the visible opacity of each digit
        (k, size, size), float32, 1 <= k <= 3, whose sum over k is at most 1.
    """
    backdrop = _background(photos[rng.integers(len(photos))], size, rng)
    num_small = rng.choice(3, p=(0.5, 0.3, 0.2))
    sides = [rng.uniform(0.6, 0.8), *rng.uniform(0.25, 0.35, num_small)]
    image, uncovered, layers = np.zeros_like(backdrop), np.ones((size, size), np.float32), []
    for side in sides:
        opacity = _render(samples[rng.integers(len(samples))], size, side * size, rng)
        visible = opacity * uncovered
        if visible.sum() < 0.75 * opacity.sum():
            continue  # a mostly hidden digit: nobody could verify its label
        image += visible[..., None] * _color(backdrop, visible, rng).astype(np.float32)
        uncovered = uncovered * (1 - opacity)
        layers.append(visible)
    image += uncovered[..., None] * backdrop
    return image.round().astype(np.uint8), np.stack(layers)


def draw_split(
    split: str, count: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (image, opacities, label) from `compose`, cycling through the ten labels.

    An image depends on its index, `split`, `size` and `seed`, not on `count`.
    """
    photos, samples = load_photos(split), load_digit_samples(split, seed)
    for index in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        label = index % 10
        yield *compose(samples[label], photos, size, rng), label
