"""Checks images and masks in the ADE20K layout."""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .common import Report, inspect_images, list_files, list_images, map_files

SPLITS = ('training', 'validation')
IGNORED = 255  # what mmseg ignores beside 0


class MaskInfo(NamedTuple):
    """One opened mask: its size and how many pixels each id has; `error` if it is no mask."""

    width: int = 0
    height: int = 0
    counts: tuple[int, ...] = ()
    error: str = ''


def inspect_mask(path: str, decode: bool = True) -> MaskInfo:
    """Open a mask as mmseg does (PIL, unchanged) and count its ids."""
    try:
        with Image.open(path) as mask:
            if len(mask.getbands()) > 1:
                return MaskInfo(
                    error=f'mask with {len(mask.getbands())} channels ({mask.mode}): expected one '
                    'channel of class ids; turn colors into ids first'
                )
            if mask.format != 'PNG':
                return MaskInfo(error=f'{mask.format} mask: lossy or unusual, expected PNG')
            if not decode:
                return MaskInfo(*mask.size)
            ids = np.asarray(mask)
    except Exception as error:  # decoders raise what they like
        return MaskInfo(error=f'mask that cannot be read ({type(error).__name__})')
    if ids.min() < 0 or ids.max() > 255:
        return MaskInfo(error='mask with ids outside 0..255: mmseg reads 8 bits')
    height, width = ids.shape
    counts = np.bincount(ids.ravel().astype(np.uint8), minlength=256)
    return MaskInfo(width, height, tuple(counts.tolist()))


def check_ade20k(
    root: str | Path,
    num_classes: int | None = None,
    zero_is_class: bool = False,
    **reading,
) -> Report:
    """Check images/{training,validation} against annotations/{training,validation}.

    Args:
        root: the data set; a classes.txt in it names the classes, a line each.
        num_classes: default: the lines of classes.txt, else the 150 of ADE20K.
        zero_is_class: ids are 0..N-1 (reduce_zero_label=False), else 1..N and 0 is ignored.
        reading: `decode`, `workers` and `watch` of `inspect_images`.
    """
    root, report = Path(root), Report()
    listed = root / 'classes.txt'
    names = listed.read_text().splitlines() if listed.is_file() else []
    num_classes = num_classes or len(names) or 150
    if names and len(names) != num_classes:
        report.error(f'classes.txt names {len(names)} classes, expected {num_classes} (--classes)')
    ids = range(num_classes) if zero_is_class else range(1, num_classes + 1)
    names = dict(zip(ids, names, strict=False))
    for split in SPLITS:
        folders = root / 'images' / split, root / 'annotations' / split
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            report.error(f'no folder {" and ".join(map(str, missing))}')
        else:
            _check_split(*folders, ids, names, report, **reading)
    return report


def _check_split(
    images: Path, masks: Path, ids: range, names: dict[int, str], report: Report, **reading
) -> None:
    found = list_images(images, report)
    mask_of = _pair(images, masks, found, report)
    report.facts.append(f'{images.name}: {len(found)} images, {len(mask_of)} with a mask')
    usable = inspect_images(images, found, report, **reading)
    inspect = partial(inspect_mask, decode=reading.get('decode', True))
    paths = [os.path.join(masks, mask) for mask in mask_of.values()]
    opened = map_files(inspect, paths, reading.get('workers', 1))
    pixels = np.zeros(256, np.int64)
    for (image, mask), info in zip(mask_of.items(), opened, strict=True):
        place = f'annotations/{masks.name}/{mask}'
        if info.error:
            report.error(info.error, place)
            continue
        size = usable[image][1:3] if image in usable else (info.width, info.height)
        if size != (info.width, info.height):
            report.error(
                'mask and image differ in size',
                f'{place} {info.width} x {info.height}, image {size[0]} x {size[1]}',
            )
        if info.counts:
            pixels += info.counts
            _check_ids(place, info.counts, ids, report)
    if pixels.sum():
        report.facts += _frequencies(images.name, pixels, ids, names, report)


def _pair(images: Path, masks: Path, found: list[str], report: Report) -> dict[str, str]:
    """Image name -> mask name, both relative to their folders."""
    existing = {name for name in list_files(masks) if not os.path.basename(name).startswith('.')}
    mask_of, stems = {}, Counter(os.path.splitext(name)[0] for name in found)
    if double := [stem for stem, count in stems.items() if count > 1]:
        report.error('two images for one mask', *(f'{images.name}/{stem}' for stem in double))
    for name in found:
        mask = os.path.splitext(name)[0] + '.png'
        if mask in existing:
            mask_of[name] = mask
        else:
            report.error('image without a mask', f'images/{images.name}/{name}')
    for mask in sorted(existing - set(mask_of.values())):
        place = f'annotations/{masks.name}/{mask}'
        if mask.endswith('.png'):
            report.error('mask without an image', place)
        else:
            report.note('file beside the masks that is no .png: not read', place)
    other = sorted({os.path.splitext(name)[1] for name in found} - {'.jpg'})
    if other:
        report.note(
            f'{images.name}: images are {", ".join(other)}; the ADE20K data set reads .jpg: set '
            'img_suffix, or they are left out'
        )
    return mask_of


def _check_ids(place: str, counts: tuple[int, ...], ids: range, report: Report) -> None:
    present = {i for i, count in enumerate(counts) if count}
    if strange := sorted(present - set(ids) - {0, IGNORED}):
        shown = ', '.join(map(str, strange[:5]))
        ignored = '255 is' if ids.start == 0 else '0 and 255 are'
        report.error(
            f'mask with ids outside {ids.start}..{ids.stop - 1} ({ignored} ignored)',
            f'{place}: {shown}',
        )
    if not present & set(ids):
        report.note('mask without any class', place)


def _frequencies(
    split: str,
    pixels: np.ndarray,
    ids: range,
    names: dict[int, str],
    report: Report,
) -> list[str]:
    share = 100 * pixels / pixels.sum()
    absent = [i for i in ids if not pixels[i]]
    ignored = sum(share[i] for i in {0, IGNORED} - set(ids))
    lines = [f'{split}: {ignored:.1f} % of the pixels are ignored, {len(absent)} classes absent']
    present = sorted((i for i in ids if pixels[i]), key=lambda i: -share[i])
    shown = present if len(ids) <= 30 else present[:10]
    parts = [f'{i} {names.get(i, "")}'.strip() + f' {share[i]:.1f} %' for i in shown]
    lines.append(
        f'{split}: pixels per class{"" if shown == present else ", ten most frequent"}: '
        + ', '.join(parts)
    )
    if absent:
        report.note(
            f'{split}: class that never occurs',
            *(f'{i} {names.get(i, "")}'.strip() for i in absent),
        )
    if ids.start == 1 and pixels[0] and absent[-1:] == [ids.stop - 1]:
        report.note(
            f'{split}: id 0 occurs and id {ids.stop - 1} does not. If 0 is one of your classes, '
            'use --zero-is-class here and reduce_zero_label=False in the config'
        )
    return lines
