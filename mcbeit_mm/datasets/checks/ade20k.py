"""Check images and masks in the ADE20K layout."""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .common import Report, inspect_images, list_files, list_images, map_files, repeated

SPLITS = ('training', 'validation')
IGNORED = {0, 255}  # what mmseg ignores (0 unless it is a class)


class MaskInfo(NamedTuple):
    """An opened mask: (width, height) and its ids; `error` is empty if it is usable."""

    size: tuple[int, int] = (0, 0)
    ids: frozenset[int] = frozenset()
    error: str = ''


def inspect_mask(path: str, fast: bool = False) -> MaskInfo:
    """Open a mask as mmseg does (Pillow, unchanged) and find its ids, unless `fast`."""
    try:
        with Image.open(path) as mask:
            if (channels := len(mask.getbands())) > 1:
                return MaskInfo(
                    error=f'mask with {channels} channels ({mask.mode}): expected one channel of '
                    'class ids; turn colors into ids first'
                )
            if mask.format != 'PNG':
                return MaskInfo(error=f'{mask.format} mask: expected PNG')
            ids = [] if fast else np.unique(np.asarray(mask)).tolist()
    except Exception as error:  # Pillow's plugins raise anything
        return MaskInfo(error=f'mask that cannot be read ({type(error).__name__})')
    if ids and not 0 <= ids[0] <= ids[-1] <= 255:
        return MaskInfo(error='mask with ids outside 0..255: mmseg reads 8 bits')
    return MaskInfo(mask.size, frozenset(map(int, ids)))


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
    names = list_images(images, report)
    mask_of = _pair(images, masks, names, report)
    report.facts.append(f'{images.name}: {len(names)} images, {len(mask_of)} with a mask')
    sizes = inspect_images(images, names, report, fast, **running)
    paths = [os.path.join(masks, mask) for mask in mask_of.values()]
    opened = map_files(partial(inspect_mask, fast=fast), paths, **running)
    seen: set[int] = set()
    for (image, mask), info in zip(mask_of.items(), opened, strict=True):
        place = f'annotations/{masks.name}/{mask}'
        if info.error:
            report.error(info.error, place)
            continue
        if (size := sizes.get(image, info.size)) != info.size:
            detail = f'{place} {_text(info.size)}, image {_text(size)}'
            report.error('mask and image differ in size', detail)
        if info.ids:
            seen |= info.ids
            _check_ids(place, info.ids, labels, report)
    if seen:
        _check_absent(images.name, seen, labels, report)


def _text(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]}'


def _pair(images: Path, masks: Path, names: list[str], report: Report) -> dict[str, str]:
    """Map image names to mask names, each relative to its folder."""
    existing = {name for name in list_files(masks) if not os.path.basename(name).startswith('.')}
    stems = {name: os.path.splitext(name)[0] for name in names}
    mask_of = {name: f'{stem}.png' for name, stem in stems.items() if f'{stem}.png' in existing}
    unpaired = sorted(existing - set(mask_of.values()))
    where = f'annotations/{masks.name}'
    report.add(
        errors={
            'two images for one mask': [f'{images.name}/{x}' for x in repeated(stems.values())],
            'image without a mask': [
                f'images/{images.name}/{name}' for name in names if name not in mask_of
            ],
            'mask without an image': [f'{where}/{x}' for x in unpaired if x.endswith('.png')],
        },
        notes={
            'file among the masks that is not a .png: skipped': [
                f'{where}/{x}' for x in unpaired if not x.endswith('.png')
            ],
            'image that is no .jpg: the ADE20K data set leaves it out, set img_suffix': [
                f'images/{images.name}/{name}' for name in names if not name.endswith('.jpg')
            ],
        },
    )
    return mask_of


def _check_ids(place: str, ids: frozenset[int], labels: dict[int, str], report: Report) -> None:
    if unknown := sorted(ids - set(labels) - IGNORED):
        ignored = '255 is' if 0 in labels else '0 and 255 are'
        report.error(
            f'mask with ids outside {min(labels)}..{max(labels)} ({ignored} ignored)',
            f'{place}: {", ".join(map(str, unknown[:5]))}',
        )
    if not ids & set(labels):
        report.note('mask without any class', place)


def _check_absent(split: str, seen: set[int], labels: dict[int, str], report: Report) -> None:
    absent = [i for i in labels if i not in seen]
    report.add(notes={f'{split}: class that never occurs': [labels[i] for i in absent]})
    if 0 not in labels and 0 in seen and absent[-1:] == [max(labels)]:
        report.note(
            f'{split}: id 0 occurs and id {max(labels)} does not. If 0 is one of your classes, '
            'use --zero-is-class here and reduce_zero_label=False in the config'
        )
