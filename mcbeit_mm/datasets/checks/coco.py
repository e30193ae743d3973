"""Check images and instance annotations in COCO's JSON format."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from .common import Opened, Report, inspect_image, list_images, open_files, repeated, side_text

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
        split: pairs (annotation file, image folder) relative to `root`; default: COCO's.
        reading: see `open_files`.
    """
    root, report, categories = Path(root), Report(), []
    for file, folder in split or SPLITS:
        if not (root / folder).is_dir():
            report.error(f'no folder {root / folder}')
            continue
        content = _read_json(root / file, report)
        names = list_images(root / folder, report)
        opened = open_files(inspect_image, root / folder, names, report, **reading)
        if content is None:
            continue
        prefix = f'{Path(file).stem}: '
        _check_entries(prefix, content, report)
        _check_images(prefix, content['images'], names, opened, report)
        _check_annotations(prefix, content, report)
        _check_categories(prefix, content, report)
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


def _check_entries(prefix: str, content: dict[str, list], report: Report) -> None:
    """Report and remove entries that lack keys; report duplicate ids."""
    for kind, keys in KEYS.items():
        complete = [e for e in content[kind] if isinstance(e, dict) and set(keys) <= set(e)]
        if dropped := len(content[kind]) - len(complete):
            report.error(f'{prefix}{dropped} {kind} without all of {", ".join(keys)}')
        content[kind] = complete
        ids = [entry['id'] for entry in complete]
        report.error(f'{prefix}id given to several {kind}', repeated(ids))
        if kind == 'annotations' and 0 in ids:
            report.note(
                f'{prefix}annotation id 0, which pycocotools takes for "no match": start ids at 1'
            )


def _check_images(
    prefix: str, images: list[dict], names: list[str], opened: dict[str, Opened], report: Report
) -> None:
    listed, wrong_size = [image['file_name'] for image in images], []
    for image in images:
        stated = image['width'], image['height']
        size = opened[image['file_name']].size if image['file_name'] in opened else stated
        if size != stated:
            text = f'{side_text(stated)}, image {side_text(size)}'
            wrong_size.append(f'{image["file_name"]}: {text}')
    report.error(f'{prefix}file given to several images', repeated(listed))
    report.error(f'{prefix}image that is not in its folder', sorted(set(listed) - set(names)))
    report.error(
        f'{prefix}size in the file differs from that of the image (after EXIF rotation)', wrong_size
    )
    report.note(
        f'{prefix}image in the folder but not in the file: not used',
        sorted(set(names) - set(listed)),
    )


def _check_annotations(prefix: str, content: dict[str, list], report: Report) -> None:
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for annotation in content['annotations']:
        box, size = annotation['bbox'], sizes.get(annotation['image_id'])
        problems = [
            annotation['category_id'] not in categories and 'unknown category id',
            size is None and 'unknown image id',
            size and box_problem(box, size),
            size and mask_problem(annotation.get('segmentation'), size),
        ]
        for problem in filter(None, problems):
            report.error(prefix + problem, [f'annotation {annotation["id"]}'])


def _check_categories(prefix: str, content: dict[str, list], report: Report) -> None:
    names = {category['id']: category['name'] for category in content['categories']}
    report.facts.append(prefix + ', '.join(f'{len(content[kind])} {kind}' for kind in KEYS))
    used = {annotation['category_id'] for annotation in content['annotations']}
    unused = sorted(str(name) for i, name in names.items() if i not in used)
    report.note(f'{prefix}category without annotations', unused)
    if len(names) != 80:
        report.note(
            f'{prefix}{len(names)} categories, not the 80 of COCO: the config needs their names '
            'and number, or mmdet drops every annotation'
        )


def box_problem(box: object, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a box in an image of (height, width), None if nothing."""
    numbers = isinstance(box, list) and all(isinstance(v, int | float) for v in box)
    if not numbers or len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        return 'box that is not x, y, width, height'
    x, y, width, height = box
    # Official files have boxes that end up to a pixel outside.
    if max(-x, -y, x + width - size[1], y + height - size[0]) > 1:
        return 'box beyond the image (boxes are x, y, width, height, not corners)'
    return None


def mask_problem(mask: object, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a mask of an image of (height, width), None if nothing."""
    if not mask:
        return 'annotation without a mask, which Mask R-CNN needs'
    if isinstance(mask, list):
        short = any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in mask)
        return 'polygon without three x, y points' if short else None
    if not isinstance(mask, dict) or mask.get('size') != list(size):
        return 'RLE mask whose size is not [height, width] of its image'
    counts = mask.get('counts')
    counts = decode_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(isinstance(c, int) and c >= 0 for c in counts):
        return 'RLE mask that cannot be decoded: its counts are not run lengths'
    if sum(counts) != math.prod(size):
        return 'RLE mask that cannot be decoded: its counts do not add up to its pixels'
    return None


def decode_counts(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed RLE, None if it is truncated.

    pycocotools trusts the text: it reads past its end, and leaves pixels that the runs do not cover
    uninitialized.
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
