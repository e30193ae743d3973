"""Write the embedded data set in the layouts of an image folder, ADE20K and COCO."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from .scenes import PHOTOS, draw_split, require

DIGITS = tuple(f'digit_{i}' for i in range(10))
NAMES = {  # split -> its name in ADE20K, in COCO
    'train': ('training', 'train2017'),
    'val': ('validation', 'val2017'),
}
LIMITS = dict(train=(10, 10**6), val=(10, 10**6), size=(64, 512), seed=(0, 2**32 - 1))
RECIPE = 1  # increment when the images change: existing sets then no longer match


def semantic_mask(opacities: np.ndarray, label: int) -> np.ndarray:
    """Return an ADE20K-style mask: 0 = ignore (soft borders), 1 = background, label + 2 = digit.

    Args:
        opacities: (k, H, W) visible opacity of each digit.
        label: class of all digits, 0..9.

    Returns:
        (H, W) uint8.
    """
    mask = np.zeros(opacities.shape[1:], np.uint8)
    mask[opacities.sum(0) <= 0.25] = 1
    mask[opacities.max(0) >= 0.75] = label + 2
    return mask


def coco_annotation(opacity: np.ndarray, label: int, image_id: int, ann_id: int) -> dict:
    """Return the COCO annotation of the pixels above half opacity, as uncompressed RLE.

    Unlike polygons, RLE keeps the holes of 0, 4, 6, 8 and 9 and equals the mask exactly.
    """
    mask = opacity > 0.5  # opacities sum to at most 1: no pixel belongs to two digits
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


def _write_split(out: Path, split: str, scenes: Iterable) -> int:
    """Write (image, opacities, label) scenes in all layouts; return the number of digits."""
    ade, coco = NAMES[split]
    classes = [out / 'classification' / split / name for name in DIGITS]
    images, masks = (out / 'segmentation' / kind / ade for kind in ('images', 'annotations'))
    photos, instances = out / 'detection' / coco, out / 'detection' / 'annotations'
    for folder in (*classes, images, masks, photos, instances):
        folder.mkdir(parents=True, exist_ok=True)
    listed, annotations = [], []
    for image_id, (image, opacities, label) in enumerate(scenes, start=1):
        name = f'{image_id:06d}'
        jpg = cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 95))[1]
        for folder in (classes[label], images, photos):
            (folder / f'{name}.jpg').write_bytes(jpg)
        mask = semantic_mask(opacities, label)
        (masks / f'{name}.png').write_bytes(cv2.imencode('.png', mask)[1])
        height, width = mask.shape
        listed.append(dict(id=image_id, file_name=f'{name}.jpg', width=width, height=height))
        for opacity in opacities:  # ids start at 1: pycocotools takes 0 for "not matched"
            annotations.append(coco_annotation(opacity, label, image_id, len(annotations) + 1))
    categories = [dict(id=i, name=name) for i, name in enumerate(DIGITS, start=1)]
    content = dict(images=listed, annotations=annotations, categories=categories)
    (instances / f'instances_{coco}.json').write_text(json.dumps(content))
    return len(annotations)


def make_demo_data(
    out: str | os.PathLike,
    train: int = 2000,
    val: int = 400,
    size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Write the embedded data set: the same images in image folder, ADE20K and COCO layouts.

    A finished set with the same arguments is kept; an unfinished one leaves nothing at `out`.

    Args:
        out: folder of the set; missing, empty, or a set with the same arguments.
        train: number of training images, at least 10.
        val: number of validation images, at least 10, from other digits and photograph regions.
        size: side of the square images in pixels, 64 to 512.

    Returns:
        The content of `out`/info.json: arguments, counts, sources.
    """
    arguments = dict(train=train, val=val, size=size, seed=seed, recipe=RECIPE)
    _check_limits(arguments)
    sources = {name: [require(name).__version__, *files] for name, (_, files) in PHOTOS.items()}
    out = Path(out).resolve()
    file = out / 'info.json'
    if file.is_file() and (info := json.loads(file.read_text())).get('arguments') == arguments:
        return info
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(
            f'{out} holds other files or a set with other arguments: choose another folder, or '
            'delete the old set'
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'{out.name}_unfinished_') as folder:
        info = dict(arguments=arguments, digits={}, sources=sources)
        _write_set(Path(folder, 'set'), info, progress)
        Path(folder, 'set').replace(out)
    return info


def _check_limits(arguments: dict) -> None:
    for name, (low, high) in LIMITS.items():
        if not low <= arguments[name] <= high:
            raise ValueError(f'{name} must be from {low} to {high}, got {arguments[name]}')


def _write_set(out: Path, info: dict, progress: bool) -> None:
    size, seed = info['arguments']['size'], info['arguments']['seed']
    for split in NAMES:
        count = info['arguments'][split]
        scenes = draw_split(split, count, size, seed)
        bar = track(scenes, f'{split} images', total=count, disable=not progress)
        info['digits'][split] = _write_split(out, split, bar)
    lines = '\n'.join(('background', *DIGITS)) + '\n'
    (out / 'segmentation' / 'classes.txt').write_text(lines)
    (out / 'info.json').write_text(json.dumps(info, indent=2) + '\n')
