"""Check images and instance annotations in COCO's JSON format."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .common import Report, inspect_images, list_images

SPLITS = tuple((f'annotations/instances_{name}.json', name) for name in ('train2017', 'val2017'))
KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


def check_coco(
    root: str | Path, split: Sequence[tuple[str, str]] | None = None, **reading
) -> Report:
    """Check annotation files against image folders.

    Args:
        root: the data set.
        split: pairs (annotation file, image folder) relative to `root`; default: those of COCO.
        reading: `fast`, `workers` and `progress`.
    """
    root, report, categories = Path(root), Report(), []
    for file, folder in split or SPLITS:
        if not (root / folder).is_dir():
            report.error(f'no folder {root / folder}')
            continue
        content = _read_json(root / file, report)
        names = list_images(root / folder, report)
        infos = inspect_images(root / folder, names, report, **reading)
        if content is None:
            continue
        stem = Path(file).stem
        _check_keys(stem, content, report)
        sizes = {name: infos[name].size if name in infos else None for name in names}
        _check_images(stem, content['images'], sizes, report)
        _check_annotations(stem, content, report)
        _add_statistics(stem, content, report)
        categories.append([(c['id'], c['name']) for c in content['categories']])
    if any(c != categories[0] for c in categories):
        report.error('the annotation files have different categories')
    return report


def _read_json(file: Path, report: Report) -> dict[str, list] | None:
    """Read an annotation file; None, with an error in the report, if its form is not COCO's."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        report.error(f'no annotation file {file}')
        return None
    except ValueError as error:
        report.error(f'{file} is not JSON ({error})')
        return None
    lists = content if isinstance(content, dict) else {}
    if absent := [key for key in KEYS if not isinstance(lists.get(key), list)]:
        report.error(f'{file}: expected lists images, annotations, categories; no {absent}')
        return None
    return content


def _check_keys(split: str, content: dict[str, list], report: Report) -> None:
    """Report and remove entries that lack keys; report duplicate ids."""
    for kind, keys in KEYS.items():
        complete = [e for e in content[kind] if isinstance(e, dict) and set(keys) <= set(e)]
        if dropped := len(content[kind]) - len(complete):
            report.error(f'{split}: {dropped} {kind} without all of {", ".join(keys)}')
        content[kind] = complete
        if duplicates := _duplicates(entry['id'] for entry in complete):
            report.error(f'{split}: id given to several {kind}', *map(str, duplicates))
    if any(annotation['id'] == 0 for annotation in content['annotations']):
        report.note(
            f'{split}: annotation id 0, which pycocotools takes for "no match": start ids at 1'
        )


def _duplicates(values) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_images(
    split: str, images: list[dict], sizes: dict[str, tuple[int, int] | None], report: Report
) -> None:
    listed = {image['file_name'] for image in images}
    if duplicates := _duplicates(image['file_name'] for image in images):
        report.error(f'{split}: file given to several images', *duplicates)
    if missing := sorted(listed - set(sizes)):
        report.error(f'{split}: image that is not in its folder', *missing)
    if unlisted := sorted(set(sizes) - listed):
        report.note(f'{split}: image in the folder that the file leaves out: not used', *unlisted)
    for image in images:
        stated, size = (image['width'], image['height']), sizes.get(image['file_name'])
        if size and size != stated:
            report.error(
                f'{split}: size in the file differs from that of the image (after EXIF rotation)',
                f'{image["file_name"]}: {stated[0]} x {stated[1]}, image {size[0]} x {size[1]}',
            )


def _check_annotations(split: str, content: dict[str, list], report: Report) -> None:
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for annotation in content['annotations']:
        place = f'annotation {annotation["id"]}'
        if annotation['category_id'] not in categories:
            report.error(f'{split}: unknown category id', f'{place}: {annotation["category_id"]}')
        image = images.get(annotation['image_id'])
        if image is None:
            report.error(f'{split}: unknown image id', f'{place}: {annotation["image_id"]}')
            continue
        _check_box(split, place, annotation['bbox'], image, report)
        _check_mask(split, place, annotation.get('segmentation'), image, report)


def _add_statistics(split: str, content: dict[str, list], report: Report) -> None:
    names = {category['id']: category['name'] for category in content['categories']}
    annotations = content['annotations']
    empty = {i['id'] for i in content['images']} - {a['image_id'] for a in annotations}
    known = [a for a in annotations if a['category_id'] in names]
    counts = Counter(names[a['category_id']] for a in known)
    crowds = sum(bool(a.get('iscrowd')) for a in annotations)
    shown = counts.most_common(None if len(counts) <= 20 else 10)
    report.facts += [
        f'{split}: {len(content["images"])} images ({len(empty)} without annotations, which '
        f'training leaves out), {len(annotations)} annotations ({crowds} crowds), '
        f'{len(counts)} of {len(names)} categories',
        f'{split}: most frequent: ' + ', '.join(f'{name} {count}' for name, count in shown),
    ]
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
    size = [image['height'], image['width']]
    if not mask:
        report.error(f'{split}: annotation without a mask, which Mask R-CNN needs', place)
    elif isinstance(mask, list):
        if any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in mask):
            report.error(f'{split}: polygon without three x, y points', place)
    elif not isinstance(mask, dict) or mask.get('size') != size:
        report.error(f'{split}: RLE mask whose size is not [height, width] of its image', place)
    else:
        counts = mask.get('counts')
        counts = decode_counts(counts) if isinstance(counts, str) else counts
        if not isinstance(counts, list) or not all(isinstance(c, int) and c >= 0 for c in counts):
            problem = 'counts are not run lengths'
        elif sum(counts) != math.prod(size):
            problem = f'counts add up to {sum(counts)}, not {math.prod(size)}'
        else:
            return
        report.error(f'{split}: RLE mask that cannot be decoded', f'{place}: {problem}')


def decode_counts(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed RLE, None if it is broken off.

    Not left to pycocotools, which trusts the text: it reads past its end and leaves pixels that the
    runs do not cover uninitialized.
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
