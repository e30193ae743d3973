"""The embedded data set: handwritten digits on photographs, labelled for three tasks at once.

Every pixel comes from installed packages: the digits are scikit-learn's `load_digits` (8x8, UCI
optdigits), the backgrounds are photographs that the scikit-learn and scikit-image wheels carry.
"""

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

DIGITS = tuple(f'digit_{i}' for i in range(10))
NAMES = {  # split -> its name in ADE20K, in COCO
    'train': ('training', 'train2017'),
    'val': ('validation', 'val2017'),
}
PHOTOS = {  # package -> (folder in it, photographs); each scene once, none with legible characters
    'sklearn': ('datasets/images', ('china.jpg', 'flower.jpg')),
    'skimage': (
        'data',
        ('astronaut.png', 'brick.png', 'camera.png', 'chelsea.png', 'coffee.png', 'coins.png')
        + ('grass.png', 'gravel.png', 'hubble_deep_field.jpg', 'ihc.png', 'moon.png')
        + ('motorcycle_left.png', 'rocket.jpg'),
    ),
}
LAYOUTS = ('classification', 'segmentation', 'detection')
UNFINISHED = 'unfinished'  # marks a folder whose making was interrupted
RECIPE = 1  # raise it when the pictures change, so that existing sets are made again
LUMINANCE = np.array([0.114, 0.587, 0.299], np.float32)  # of BGR


def _require(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'the embedded data set needs {package!r}, which cannot be imported ({error}): '
            'pip install scikit-learn scikit-image'
        ) from error


def load_photos(split: str) -> list[np.ndarray]:
    """Read the bundled photographs: the left two thirds of each for train, the rest for val.

    Returns:
        BGR uint8 arrays of different sizes.
    """
    regions = []
    for package, (folder, names) in PHOTOS.items():
        module = _require(package)
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
    """Deal the 1,797 handwritten digits, class by class: 80 % to train, 20 % to val.

    Returns:
        Ten arrays (n, 8, 8), float32 ink in [0, 1], indexed by class.
    """
    bunch = _require('sklearn.datasets').load_digits()
    rng = np.random.default_rng((seed, 2))  # 0 and 1 seed the images of train and val
    samples = []
    for label in range(10):
        order = rng.permutation(np.flatnonzero(bunch.target == label))
        cut = len(order) * 4 // 5
        chosen = order[:cut] if split == 'train' else order[cut:]
        samples.append((bunch.images[chosen] / 16).astype(np.float32))
    return samples


def _background(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random square crop, flip, gain and contrast: (size, size, 3) float32 in [0, 255]."""
    longest = min(*photo.shape[:2], 400)
    side = rng.integers(min(96, longest), longest + 1)
    y, x = (rng.integers(0, extent - side + 1) for extent in photo.shape[:2])
    crop = photo[y : y + side, x : x + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = crop.astype(np.float32)
    mean = crop.mean((0, 1))
    # The digits are light: the photograph is dimmed where it is bright, and smoothed where its
    # texture (standard deviation, of 255) is so strong that it would hide them.
    contrast = rng.uniform(0.4, 0.8) * min(1.0, 42 / max(crop.std(), 1.0))
    exposure = rng.uniform(0.6, 1.0) * min(1.0, 100 / max(mean @ LUMINANCE, 1.0))
    tinted = mean * exposure * rng.uniform(0.9, 1.1, 3)
    return np.clip((crop - mean) * contrast + tinted, 0, 255).astype(np.float32)


def _render(ink: np.ndarray, size: int, side: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity (size, size) in [0, 1] of a digit, `side` pixels high, at a random place and pose."""
    glyph = cv2.resize(np.pad(ink, 2), (96, 96), interpolation=cv2.INTER_CUBIC)  # 8 px per cell
    scale = side / 64
    matrix = cv2.getRotationMatrix2D((47.5, 47.5), rng.uniform(-15, 15), scale)
    matrix[:, 1] += rng.uniform(-0.2, 0.2) * matrix[:, 0]  # shear
    matrix[:, :2] *= np.array([[rng.uniform(0.85, 1.15)], [1.0]])
    margin = 0.57 * side  # half the height, and what the rotation adds
    centre = rng.uniform(margin, size - margin, 2)
    matrix[:, 2] = centre - matrix[:, :2] @ (47.5, 47.5)
    warped = cv2.warpAffine(glyph, matrix, (size, size), flags=cv2.INTER_LINEAR)
    threshold = rng.uniform(0.38, 0.52)  # stroke width
    return np.clip((warped - threshold) * side / 16 + 0.5, 0, 1)  # an edge about two pixels wide


def _colour(backdrop: np.ndarray, opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light BGR colour, its luminance at least 80 of 255 above the mean that the digit covers."""
    covered = float((backdrop @ LUMINANCE * opacity).sum() / opacity.sum())
    target = rng.uniform(min(covered + 80, 235), 250)
    colour = rng.uniform(0, 255, 3)
    luminance = colour @ LUMINANCE
    if luminance > target:
        return colour * (target / luminance)
    return colour + (255 - colour) * ((target - luminance) / (255 - luminance))


def compose(
    samples: np.ndarray, photos: list[np.ndarray], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one large digit, and up to two small ones behind it, on a crop of a photograph.

    Args:
        samples: (n, 8, 8) ink in [0, 1], all of one class.
        photos: BGR uint8 arrays to cut the background from.
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
            continue  # a digit mostly hidden would be a label nobody can verify
        image += visible[..., None] * _colour(backdrop, visible, rng).astype(np.float32)
        uncovered = uncovered * (1 - opacity)
        layers.append(visible)
    image += uncovered[..., None] * backdrop
    return image.round().astype(np.uint8), np.stack(layers)


def draw_split(
    split: str, count: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (image, opacities, label) as `compose` makes them; the ten labels take turns.

    An image depends on its number, `split`, `size` and `seed`, not on `count`.
    """
    photos, samples = load_photos(split), load_digit_samples(split, seed)
    for index in range(count):
        rng = np.random.default_rng((seed, list(NAMES).index(split), index))
        label = index % 10
        yield *compose(samples[label], photos, size, rng), label


def semantic_mask(opacities: np.ndarray, label: int) -> np.ndarray:
    """ADE20K-style mask: 0 = ignore (soft borders), 1 = background, label + 2 = digit.

    Args:
        opacities: (k, H, W) visible opacity of each digit.
        label: class of all of them, 0..9.

    Returns:
        (H, W) uint8.
    """
    mask = np.zeros(opacities.shape[1:], np.uint8)
    mask[opacities.sum(0) <= 0.25] = 1
    mask[opacities.max(0) >= 0.75] = label + 2
    return mask


def coco_annotation(opacity: np.ndarray, label: int, image_id: int, ann_id: int) -> dict:
    """COCO annotation of the pixels with more than half opacity, as uncompressed RLE.

    RLE rather than polygons: it keeps the holes of 0, 4, 6, 8 and 9 and equals the mask exactly.
    """
    mask = opacity > 0.5  # opacities sum to 1 at most, so no pixel belongs to two digits
    column_major = mask.ravel(order='F')
    edges = np.flatnonzero(np.diff(column_major, prepend=False, append=False))
    ends = np.unique(np.append(edges, mask.size))
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1]
    return dict(
        id=ann_id,
        image_id=image_id,
        category_id=label + 1,
        bbox=[int(v) for v in box],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=list(mask.shape), counts=np.diff(ends, prepend=0).tolist()),
    )


def _prepare(out: Path, arguments: dict) -> dict | None:
    """Return the info of a finished set with these arguments, else leave `out` empty and marked."""
    info_file, marker = out / 'info.json', out / UNFINISHED
    if info_file.is_file() and not marker.exists():
        info = json.loads(info_file.read_text())
        if 'arguments' not in info:
            raise FileExistsError(f'{info_file} is not from this generator: choose another folder')
        if info['arguments'] == arguments and all((out / name).is_dir() for name in LAYOUTS):
            return info
    elif out.exists() and not marker.exists() and any(out.iterdir()):
        raise FileExistsError(f'{out} holds other files: choose an empty or missing folder')
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    info_file.unlink(missing_ok=True)
    for name in LAYOUTS:
        shutil.rmtree(out / name, ignore_errors=True)
    return None


def _place(source: Path, target: Path) -> None:
    """Let an image file appear in another layout too: a hard link, or a copy where it fails."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_split(out: Path, split: str, scenes: Iterable) -> int:
    """Write (image, opacities, label) scenes in all layouts; returns the number of digits."""
    ade, coco = NAMES[split]
    classes = [out / 'classification' / split / name for name in DIGITS]
    images, masks = (out / 'segmentation' / kind / ade for kind in ('images', 'annotations'))
    photos, instances = out / 'detection' / coco, out / 'detection' / 'annotations'
    for folder in (*classes, images, masks, photos, instances):
        folder.mkdir(parents=True, exist_ok=True)
    listed, annotations = [], []
    for image_id, (image, opacities, label) in enumerate(scenes, start=1):
        jpg = classes[label] / f'{image_id:06d}.jpg'
        jpg.write_bytes(cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 95))[1])
        _place(jpg, images / jpg.name)
        _place(jpg, photos / jpg.name)
        mask = semantic_mask(opacities, label)
        (masks / f'{jpg.stem}.png').write_bytes(cv2.imencode('.png', mask)[1])
        height, width = mask.shape
        listed.append(dict(id=image_id, file_name=jpg.name, width=width, height=height))
        for opacity in opacities:  # ids from 1: pycocotools takes 0 for "not matched"
            annotations.append(coco_annotation(opacity, label, image_id, len(annotations) + 1))
    categories = [dict(id=i, name=name) for i, name in enumerate(DIGITS, start=1)]
    content = dict(images=listed, annotations=annotations, categories=categories)
    (instances / f'instances_{coco}.json').write_text(json.dumps(content))
    return len(annotations)


def _check(arguments: dict) -> None:
    limits = dict(train=(10, 10**6), val=(10, 10**6), size=(64, 512), seed=(0, 2**32 - 1))
    for name, (low, high) in limits.items():
        if not low <= arguments[name] <= high:
            raise ValueError(f'{name} must be from {low} to {high}, got {arguments[name]}')


def make_demo_data(
    out: str | os.PathLike,
    train: int = 2000,
    val: int = 400,
    size: int = 128,
    seed: int = 0,
    watch: Callable[[Iterable], Iterable] = iter,
) -> dict:
    """Write the embedded data set: the same images as image folder, ADE20K and COCO layouts.

    A finished set with the same arguments is kept; an interrupted or a different one is made again.

    Args:
        out: folder of the set; missing, empty, or an earlier set.
        train: number of training images, 10 or more.
        val: number of validation images, 10 or more, of other digits and photograph regions.
        size: side of the square images in pixels, 64 to 512.
        seed: 0 to 2**32 - 1.
        watch: wraps the iterable over all images of a split, to show progress.

    Returns:
        The content of `out`/info.json, which is written last: arguments, counts, sources.
    """
    arguments = dict(train=train, val=val, size=size, seed=seed, recipe=RECIPE)
    _check(arguments)
    sources = {name: [_require(name).__version__, *files] for name, (_, files) in PHOTOS.items()}
    out = Path(out)
    if info := _prepare(out, arguments):
        return info
    digits = {
        split: _write_split(out, split, watch(draw_split(split, arguments[split], size, seed)))
        for split in NAMES
    }
    lines = '\n'.join(('background', *DIGITS)) + '\n'
    (out / 'segmentation' / 'classes.txt').write_text(lines)
    info = dict(arguments=arguments, digits=digits, sources=sources)
    (out / 'info.json').write_text(json.dumps(info, indent=2) + '\n')
    (out / UNFINISHED).unlink()
    return info
