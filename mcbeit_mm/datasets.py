"""The embedded data set: handwritten digits on photographs, labelled for three tasks at once.

Every pixel comes from installed packages: the digits are scikit-learn's `load_digits` (8x8, UCI
optdigits), the backgrounds are photographs that the scikit-learn and scikit-image wheels carry.
"""

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

DIGITS = tuple(f'digit_{i}' for i in range(10))
SPLITS = {  # split -> (seed word, ADE20K name, COCO name)
    'train': (0, 'training', 'train2017'),
    'val': (1, 'validation', 'val2017'),
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


def _require(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'the embedded data set needs {package!r}, which cannot be imported: '
            'pip install scikit-learn scikit-image'
        ) from error


def load_photos() -> dict[str, list[np.ndarray]]:
    """Read the bundled photographs and cut each into a train and a val region.

    Returns:
        split -> BGR uint8 arrays; train holds the left two thirds of each photograph, val the rest.

    Raises:
        ImportError: a package is missing.
        FileNotFoundError: a package does not carry an expected photograph.
    """
    regions = {'train': [], 'val': []}
    for package, (folder, names) in PHOTOS.items():
        module = _require(package)
        for name in names:
            path = Path(module.__file__).parent / folder / name
            if not path.is_file():
                raise FileNotFoundError(
                    f'{path} is not part of {package} {module.__version__}: '
                    'install scikit-learn>=1.3 and scikit-image>=0.22 from PyPI wheels'
                )
            photo = cv2.imread(str(path), cv2.IMREAD_COLOR)
            cut = photo.shape[1] * 2 // 3
            regions['train'].append(photo[:, :cut])
            regions['val'].append(photo[:, cut:])
    return regions


def load_digit_samples(seed: int) -> dict[str, list[np.ndarray]]:
    """Split the 1,797 handwritten digits, class by class, into 80 % train and 20 % val.

    Returns:
        split -> ten arrays (n, 8, 8), float32 ink in [0, 1], indexed by class.
    """
    bunch = _require('sklearn.datasets').load_digits()
    ink = (bunch.images / 16).astype(np.float32)
    samples = {'train': [], 'val': []}
    for label in range(10):
        order = np.random.default_rng((seed, 2, label)).permutation(
            np.flatnonzero(bunch.target == label)
        )
        cut = len(order) * 4 // 5
        samples['train'].append(ink[order[:cut]])
        samples['val'].append(ink[order[cut:]])
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
    # Strong texture would hide the digits: its deviation stays below 45 of 255.
    contrast = rng.uniform(0.7, 1.0) * min(1.0, 45 / max(crop.std(), 1.0))
    mean_to = mean * rng.uniform(0.8, 1.15) * rng.uniform(0.9, 1.1, 3)
    return np.clip((crop - mean) * contrast + mean_to, 0, 255).astype(np.float32)


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
    """BGR colour whose luminance differs by at least 80 of 255 from what the digit covers."""
    covered = float((backdrop @ LUMINANCE * opacity).sum() / opacity.sum())
    ranges = [(low, high) for low, high in ((10, covered - 80), (covered + 80, 245)) if low < high]
    target = rng.uniform(*ranges[rng.integers(len(ranges))])
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
    sides = [rng.uniform(0.45, 0.75), *rng.uniform(0.25, 0.38, num_small)]
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


def _write_image(out: Path, split: str, name: str, label: int, image: np.ndarray, mask: np.ndarray):
    _, ade, coco = SPLITS[split]
    folder = out / 'classification' / split / DIGITS[label]
    segmentation, detection = out / 'segmentation', out / 'detection' / coco
    masks = segmentation / 'annotations' / ade
    for path in (folder, segmentation / 'images' / ade, masks, detection):
        path.mkdir(parents=True, exist_ok=True)
    jpg = folder / f'{name}.jpg'
    jpg.write_bytes(cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes())
    _place(jpg, segmentation / 'images' / ade / jpg.name)
    _place(jpg, detection / jpg.name)
    (masks / f'{name}.png').write_bytes(cv2.imencode('.png', mask)[1].tobytes())


def _write_coco(out: Path, split: str, images: list[dict], annotations: list[dict]) -> None:
    folder = out / 'detection' / 'annotations'
    folder.mkdir(parents=True, exist_ok=True)
    categories = [dict(id=i + 1, name=name, supercategory='digit') for i, name in enumerate(DIGITS)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / f'instances_{SPLITS[split][2]}.json').write_text(json.dumps(content))


def make_demo_data(
    out: str | os.PathLike,
    train: int = 2000,
    val: int = 400,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write the embedded data set: the same images as image folder, ADE20K and COCO layouts.

    An image depends on its split, its number, `size` and `seed` only. Train and val share neither
    digit samples nor photograph regions. A finished set with the same arguments is kept as it is;
    an interrupted one, or one with other arguments, is made again.

    Args:
        out: folder of the set; missing, empty, or an earlier set.
        train: number of training images, at least 10; classes take turns.
        val: number of validation images, at least 10.
        size: side of the square images in pixels, 64 to 512.
        seed: not negative.
        progress: called with (images done, images in all) after every image.

    Returns:
        The content of `out`/info.json, which is written last.

    Raises:
        ValueError: an argument out of range.
        FileExistsError: `out` holds files that are not an earlier set.
    """
    arguments = dict(train=train, val=val, size=size, seed=seed, recipe=RECIPE)
    for name, low, high in (('train', 10, 10**6), ('val', 10, 10**6), ('size', 64, 512)):
        if not low <= arguments[name] <= high:
            raise ValueError(f'{name} must be from {low} to {high}, got {arguments[name]}')
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}')
    out = Path(out)
    photos, samples = load_photos(), load_digit_samples(seed)
    if info := _prepare(out, arguments):
        return info
    info = dict(arguments=arguments, instances={})
    done = 0
    for split, (word, _, _) in SPLITS.items():
        images, annotations = [], []
        for index in range(arguments[split]):
            label, image_id = index % 10, index + 1
            rng = np.random.default_rng((seed, word, index))
            image, opacities = compose(samples[split][label], photos[split], size, rng)
            name = f'{image_id:06d}'
            _write_image(out, split, name, label, image, semantic_mask(opacities, label))
            images.append(dict(id=image_id, file_name=f'{name}.jpg', width=size, height=size))
            for opacity in opacities:
                ann_id = len(annotations) + 1
                annotations.append(coco_annotation(opacity, label, image_id, ann_id))
            done += 1
            if progress:
                progress(done, train + val)
        _write_coco(out, split, images, annotations)
        info['instances'][split] = len(annotations)
    classes = ('background', *DIGITS)
    (out / 'segmentation' / 'classes.txt').write_text('\n'.join(classes) + '\n')
    info['sources'] = {
        package: [_require(package).__version__, *names] for package, (_, names) in PHOTOS.items()
    }
    (out / 'info.json').write_text(json.dumps(info, indent=2) + '\n')
    (out / UNFINISHED).unlink()
    return info
