"""Check images and masks in the ADE20K layout."""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .common import Report, inspect_images, list_files, list_images, map_files

SPLITS = ('training', 'validation')
IGNORED = {0, 255}  # what mmseg ignores (0 unless it is a class)


class MaskInfo(NamedTuple):
    """An opened mask: (width, height) and pixels per id; `error` is empty if it is usable."""

    size: tuple[int, int] = (0, 0)
    counts: tuple[int, ...] = ()
    error: str = ''


def inspect_mask(path: str, fast: bool = False) -> MaskInfo:
    """Open a mask as mmseg does (Pillow, unchanged) and count its ids, unless `fast`."""
    try:
        with Image.open(path) as mask:
            if (channels := len(mask.getbands())) > 1:
                return MaskInfo(
                    error=f'mask with {channels} channels ({mask.mode}): expected one channel of '
                    'class ids; turn colors into ids first'
                )
            if mask.format != 'PNG':
                return MaskInfo(error=f'{mask.format} mask: expected PNG')
            if fast:
                return MaskInfo(mask.size)
            ids = np.asarray(mask)
    except Exception as error:  # Pillow's plugins raise anything
        return MaskInfo(error=f'mask that cannot be read ({type(error).__name__})')
    if ids.min() < 0 or ids.max() > 255:
        return MaskInfo(error='mask with ids outside 0..255: mmseg reads 8 bits')
    counts = np.bincount(ids.ravel().astype(np.uint8), minlength=256)
    return MaskInfo(ids.shape[::-1], tuple(counts.tolist()))


def check_ade20k(
    root: str | Path, classes: int | None = None, zero_is_class: bool = False, **reading
) -> Report:
    """Check images/{training,validation} against annotations/{training,validation}.

    Args:
        root: the data set; an optional classes.txt names the classes, one per line.
        classes: number of classes; default: the lines of classes.txt, else the 150 of ADE20K.
        zero_is_class: ids are 0..N-1 (reduce_zero_label=False) instead of 1..N with 0 ignored.
        reading: `fast`, `workers` and `progress`.
    """
    root, report = Path(root), Report()
    listed = root / 'classes.txt'
    names = listed.read_text().splitlines() if listed.is_file() else []
    count = classes or len(names) or 150
    if names and len(names) != count:
        report.error(f'classes.txt names {len(names)} classes, expected {count} (--classes)')
    ids = range(count) if zero_is_class else range(1, count + 1)
    labels = {i: f'{i} {name}'.strip() for i, name in zip(ids, names + [''] * count, strict=False)}
    for split in SPLITS:
        folders = root / 'images' / split, root / 'annotations' / split
        if missing := [str(folder) for folder in folders if not folder.is_dir()]:
            report.error(f'no folder {" and ".join(missing)}')
        else:
            _check_split(*folders, labels, report, **reading)
    return report


def _check_split(
    images: Path, masks: Path, labels: dict[int, str], report: Report, fast: bool = False, **running
) -> None:
    found = list_images(images, report)
    mask_of = _pair(images, masks, found, report)
    report.facts.append(f'{images.name}: {len(found)} images, {len(mask_of)} with a mask')
    usable = inspect_images(images, found, report, fast, **running)
    paths = [os.path.join(masks, mask) for mask in mask_of.values()]
    opened = map_files(partial(inspect_mask, fast=fast), paths, **running)
    pixels = np.zeros(256, np.int64)
    for (image, mask), info in zip(mask_of.items(), opened, strict=True):
        place = f'annotations/{masks.name}/{mask}'
        if info.error:
            report.error(info.error, place)
            continue
        if image in usable and usable[image].size != info.size:
            (width, height), (image_width, image_height) = info.size, usable[image].size
            report.error(
                'mask and image differ in size',
                f'{place} {width} x {height}, image {image_width} x {image_height}',
            )
        if info.counts:
            pixels += info.counts
            _check_ids(place, info.counts, labels, report)
    if pixels.any():
        _add_frequencies(images.name, pixels, labels, report)


def _pair(images: Path, masks: Path, found: list[str], report: Report) -> dict[str, str]:
    """Map image names to mask names, each relative to its folder."""
    existing = {name for name in list_files(masks) if not os.path.basename(name).startswith('.')}
    stems = Counter(os.path.splitext(name)[0] for name in found)
    if double := [stem for stem, count in stems.items() if count > 1]:
        report.error('two images for one mask', *(f'{images.name}/{stem}' for stem in double))
    expected = {name: os.path.splitext(name)[0] + '.png' for name in found}
    mask_of = {name: mask for name, mask in expected.items() if mask in existing}
    if missing := [f'images/{images.name}/{name}' for name in found if name not in mask_of]:
        report.error('image without a mask', *missing)
    for mask in sorted(existing - set(mask_of.values())):
        place = f'annotations/{masks.name}/{mask}'
        if mask.endswith('.png'):
            report.error('mask without an image', place)
        else:
            report.note('file among the masks that is not a .png: skipped', place)
    if other := sorted({os.path.splitext(name)[1] for name in found} - {'.jpg'}):
        report.note(
            f'{images.name}: images are {", ".join(other)}; the ADE20K data set reads .jpg: set '
            'img_suffix, or they are left out'
        )
    return mask_of


def _check_ids(place: str, counts: tuple[int, ...], labels: dict[int, str], report: Report) -> None:
    present = {i for i, count in enumerate(counts) if count}
    if unknown := sorted(present - set(labels) - IGNORED):
        ignored = '255 is' if 0 in labels else '0 and 255 are'
        report.error(
            f'mask with ids outside {min(labels)}..{max(labels)} ({ignored} ignored)',
            f'{place}: {", ".join(map(str, unknown[:5]))}',
        )
    if not present & set(labels):
        report.note('mask without any class', place)


def _add_frequencies(
    split: str, pixels: np.ndarray, labels: dict[int, str], report: Report
) -> None:
    share = 100 * pixels / pixels.sum()
    absent = [i for i in labels if not pixels[i]]
    ignored = sum(share[i] for i in IGNORED - set(labels))
    present = sorted((i for i in labels if pixels[i]), key=lambda i: -share[i])
    shown = present if len(labels) <= 30 else present[:10]
    report.facts += [
        f'{split}: {ignored:.1f} % of the pixels are ignored, {len(absent)} classes absent',
        f'{split}: pixels per class{"" if shown == present else ", ten most frequent"}: '
        + ', '.join(f'{labels[i]} {share[i]:.1f} %' for i in shown),
    ]
    if absent:
        report.note(f'{split}: class that never occurs', *(labels[i] for i in absent))
    if 0 not in labels and pixels[0] and absent[-1:] == [max(labels)]:
        report.note(
            f'{split}: id 0 occurs and id {max(labels)} does not. If 0 is one of your classes, '
            'use --zero-is-class here and reduce_zero_label=False in the config'
        )
