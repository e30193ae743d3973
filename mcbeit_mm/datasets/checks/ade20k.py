"""Check images and masks in the ADE20K layout."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from .common import (
    Opened,
    Report,
    inspect_image,
    list_files,
    list_images,
    open_files,
    repeated,
    side_text,
)

SPLITS = ('training', 'validation')
IGNORED = {0, 255}  # what mmseg ignores (0 unless it is a class)


def inspect_mask(path: str, fast: bool = False) -> Opened:
    """Open a mask as mmseg does (Pillow, unchanged) and find its ids, unless `fast`."""
    try:
        with Image.open(path) as mask:
            if (channels := len(mask.getbands())) > 1:
                return Opened(
                    error=f'mask with {channels} channels ({mask.mode}), expected one channel of '
                    'class ids; turn colors into ids first'
                )
            if mask.format != 'PNG':
                return Opened(error=f'{mask.format} mask, expected PNG')
            if fast:
                return Opened(mask.size)
            pixels = np.asarray(mask)
    except Exception as error:  # Pillow's plugins raise anything
        return Opened(error=f'mask that cannot be read ({type(error).__name__})')
    if pixels.min() < 0 or pixels.max() > 255:
        return Opened(error='mask with ids outside 0..255, mmseg reads 8 bits')
    ids = np.flatnonzero(np.bincount(pixels.ravel().astype(np.uint8)))  # np.unique: 14 times slower
    return Opened(mask.size, frozenset(ids.tolist()))


def check_ade20k(
    root: str | Path, classes: int | None = None, zero_is_class: bool = False, **reading
) -> Report:
    """Check images/{training,validation} against annotations/{training,validation}.

    Args:
        root: the data set; an optional classes.txt names the classes, one per line.
        classes: number of classes; default: the lines of classes.txt, else the 150 of ADE20K.
        zero_is_class: ids are 0..N-1 (reduce_zero_label=False) instead of 1..N with 0 ignored.
        reading: see `open_files`.
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
    images: Path, masks: Path, labels: dict[int, str], report: Report, **reading
) -> None:
    split, names = images.name, list_images(images, report)
    mask_of = _pair(split, names, masks, report)
    report.facts.append(f'{split}: {len(names)} images, {len(mask_of)} with a mask')
    image_infos = open_files(inspect_image, images, names, report, **reading)
    mask_infos = open_files(inspect_mask, masks, list(mask_of.values()), report, **reading)
    differing = []
    for image, mask in mask_of.items():
        if image in image_infos and mask in mask_infos:
            size, mask_size = image_infos[image].size, mask_infos[mask].size
            if size != mask_size:
                differing.append(f'{split}/{mask} {side_text(mask_size)}, image {side_text(size)}')
    report.error('mask and image differ in size', differing)
    ids = {f'{split}/{mask}': info.ids for mask, info in mask_infos.items() if info.ids}
    if ids:
        _check_ids(split, ids, labels, report)


def _pair(split: str, names: list[str], masks: Path, report: Report) -> dict[str, str]:
    """Map image names to mask names, each relative to its folder."""
    existing = {name for name in list_files(masks) if not os.path.basename(name).startswith('.')}
    stems = {name: os.path.splitext(name)[0] for name in names}
    mask_of = {name: f'{stem}.png' for name, stem in stems.items() if f'{stem}.png' in existing}
    unpaired = sorted(existing - set(mask_of.values()))
    report.error('two images for one mask', [f'{split}/{x}' for x in repeated(stems.values())])
    report.error('image without a mask', [f'{split}/{x}' for x in names if x not in mask_of])
    masks_alone = [f'{split}/{x}' for x in unpaired if x.endswith('.png')]
    report.error('mask without an image', masks_alone)
    report.note(
        'file among the masks that is not a .png: skipped',
        [f'{split}/{x}' for x in unpaired if not x.endswith('.png')],
    )
    report.note(
        'image other than .jpg: ADE20KDataset skips it unless img_suffix is set',
        [f'{split}/{x}' for x in names if not x.endswith('.jpg')],
    )
    return mask_of


def _check_ids(
    split: str, ids: dict[str, frozenset[int]], labels: dict[int, str], report: Report
) -> None:
    known, seen = set(labels), set().union(*ids.values())
    unknown = {place: sorted(found - known - IGNORED) for place, found in ids.items()}
    ignored = '255 is' if 0 in labels else '0 and 255 are'
    report.error(
        f'mask with ids outside {min(labels)}..{max(labels)} ({ignored} ignored)',
        [f'{place}: {found}' for place, found in unknown.items() if found],
    )
    report.note('mask without any class', [x for x, found in ids.items() if not found & known])
    absent = [i for i in labels if i not in seen]
    report.note(f'{split}: class that never occurs', [labels[i] for i in absent])
    if 0 in seen - known and absent[-1:] == [max(labels)]:
        report.note(
            f'{split}: id 0 occurs and id {max(labels)} does not. If 0 is one of your classes, '
            'use --zero-is-class here and reduce_zero_label=False in the config'
        )
