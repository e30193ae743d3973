"""Checks images and instance annotations in COCO's JSON format."""

import json
import math
from collections import Counter
from pathlib import Path

from .common import ImageInfo, Report, inspect_images, list_images

COCO = tuple((f'annotations/instances_{name}.json', name) for name in ('train2017', 'val2017'))
KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


def check_coco(root: str | Path, splits: tuple = COCO, **reading) -> Report:
    """Check annotation files against image folders.

    Args:
        root: the data set.
        splits: pairs (annotation file, image folder), relative to `root`.
        reading: `decode`, `workers` and `watch` of `inspect_images`.
    """
    root, report, categories = Path(root), Report(), []
    for file, folder in splits:
        if not (root / folder).is_dir():
            report.error(f'no folder {root / folder}')
            continue
        content = read_annotations(root / file, report)
        names = list_images(root / folder, report)
        infos = inspect_images(root / folder, names, report, **reading)
        if content is None:
            continue
        split = Path(file).stem
        _check_keys(split, content, report)
        _check_images(split, content['images'], set(names), infos, report)
        _check_annotations(split, content, report)
        categories.append([(c['id'], c['name']) for c in content['categories']])
    if len(categories) > 1 and any(c != categories[0] for c in categories):
        report.error('the annotation files have different categories')
    return report


def read_annotations(file: Path, report: Report) -> dict[str, list[dict]] | None:
    """Read the JSON; None, with an error in the report, if it is not of COCO's form."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        report.error(f'no annotation file {file}')
        return None
    except ValueError as error:
        report.error(f'{file} is not JSON ({error})')
        return None
    absent = [
        key
        for key in KEYS
        if not (isinstance(content, dict) and isinstance(content.get(key), list))
    ]
    if absent:
        report.error(f'{file}: expected lists images, annotations, categories; no {absent}')
        return None
    return content


def _check_keys(split: str, content: dict, report: Report) -> None:
    """Report and remove entries that lack keys; report ids given twice."""
    for kind, keys in KEYS.items():
        complete = [
            entry for entry in content[kind] if isinstance(entry, dict) and set(keys) <= set(entry)
        ]
        if dropped := len(content[kind]) - len(complete):
            report.error(f'{split}: {dropped} {kind} without all of {", ".join(keys)}')
        content[kind] = complete
        counts = Counter(entry['id'] for entry in complete)
        if twice := [str(i) for i, count in counts.items() if count > 1]:
            report.error(f'{split}: id given to several {kind}', *twice)
    if any(a['id'] == 0 for a in content['annotations']):
        report.note(
            f'{split}: annotation id 0, which pycocotools takes for "no match": start ids at 1'
        )


def _check_images(
    split: str, images: list[dict], on_disk: set[str], infos: dict[str, ImageInfo], report: Report
) -> None:
    counts = Counter(image['file_name'] for image in images)
    if twice := [name for name, count in counts.items() if count > 1]:
        report.error(f'{split}: file given to several images', *twice)
    if missing := sorted(set(counts) - on_disk):
        report.error(f'{split}: image that is not in its folder', *missing)
    if unlisted := sorted(on_disk - set(counts)):
        report.note(f'{split}: image in the folder that the file leaves out: not used', *unlisted)
    for image in images:
        info = infos.get(image['file_name'])
        size = (image['width'], image['height'])
        if info and (info.width, info.height) != size:
            report.error(
                f'{split}: size in the file differs from that of the image (after EXIF rotation)',
                f'{image["file_name"]}: {size[0]} x {size[1]}, image {info.width} x {info.height}',
            )


def _check_annotations(split: str, content: dict, report: Report) -> None:
    images = {image['id']: image for image in content['images']}
    names = {category['id']: category['name'] for category in content['categories']}
    annotations = content['annotations']
    for annotation in annotations:
        place = f'annotation {annotation["id"]}'
        if annotation['category_id'] not in names:
            report.error(f'{split}: unknown category id', f'{place}: {annotation["category_id"]}')
        image = images.get(annotation['image_id'])
        if image is None:
            report.error(f'{split}: unknown image id', f'{place}: {annotation["image_id"]}')
            continue
        _check_box(split, place, annotation['bbox'], image, report)
        _check_mask(split, place, annotation.get('segmentation'), image, report)
    with_any = {a['image_id'] for a in annotations}
    counts = Counter(names.get(a['category_id']) for a in annotations)
    counts.pop(None, None)
    crowds = sum(bool(a.get('iscrowd')) for a in annotations)
    report.facts.append(
        f'{split}: {len(images)} images ({len(set(images) - with_any)} without annotations, which '
        f'training leaves out), {len(annotations)} annotations ({crowds} crowds), '
        f'{len(counts)} of {len(names)} categories'
    )
    shown = counts.most_common(None if len(counts) <= 20 else 10)
    report.facts.append(f'{split}: most frequent: ' + ', '.join(f'{n} {c}' for n, c in shown))
    if absent := sorted(set(names.values()) - set(counts)):
        report.note(f'{split}: category without annotations', *map(str, absent))
    if len(names) != 80:
        report.note(
            f'{split}: {len(names)} categories, not the 80 of COCO: the config needs their names '
            'and number, or mmdet leaves every annotation out'
        )


def _check_box(split: str, place: str, box: list, image: dict, report: Report) -> None:
    numbers = isinstance(box, list) and all(isinstance(v, int | float) for v in box)
    if not numbers or len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        report.error(f'{split}: box that is not x, y, width, height', f'{place}: {box}')
        return
    x, y, width, height = box
    beyond = max(-x, -y, x + width - image['width'], y + height - image['height'])
    if beyond > 1:  # official files have boxes that end up to a pixel outside
        report.error(
            f'{split}: box beyond the image (boxes are x, y, width, height, not corners)',
            f'{place}: {box} in {image["width"]} x {image["height"]}',
        )
    elif min(width, height) < 1:
        report.note(f'{split}: box below one pixel, which mmdet leaves out', f'{place}: {box}')


def _check_mask(split: str, place: str, mask: object, image: dict, report: Report) -> None:
    if not mask:
        report.error(f'{split}: annotation without a mask, which Mask R-CNN needs', place)
    elif isinstance(mask, list):
        if any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in mask):
            report.error(f'{split}: polygon without three x, y points', place)
    elif not isinstance(mask, dict) or mask.get('size') != [image['height'], image['width']]:
        report.error(f'{split}: RLE mask whose size is not [height, width] of its image', place)
    elif problem := _rle_problem(mask):
        report.error(f'{split}: RLE mask that cannot be decoded', f'{place}: {problem}')


def _rle_problem(mask: dict) -> str:
    height, width = mask['size']
    counts = mask.get('counts')
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or not all(isinstance(c, int) and c >= 0 for c in counts):
        return 'counts are no run lengths'
    total = sum(counts)
    return '' if total == height * width else f'counts add up to {total}, not {height * width}'


def decode_counts(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed RLE, None if it is broken off.

    pycocotools fills what a short one leaves out with whatever lies in memory.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode():
        value |= ((byte - 48) & 31) << shift
        shift += 5
        if (byte - 48) & 32:  # more to come
            continue
        if (byte - 48) & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return None if shift else counts
