"""Checks an image folder with a folder per class, or lists of "path label"; writes such lists."""

import re
import statistics
from collections import Counter
from pathlib import Path

from .common import ImageInfo, Report, inspect_images, list_images

SPLITS = ('train', 'val')
IMAGENET = dict(train=1_281_167, val=50_000)  # images of ImageNet-1k
WORDNET_ID = re.compile(r'n\d{8}')
Samples = list[tuple[str, int]]  # path below the folder of its split, label


def read_list(file: str | Path) -> Samples:
    """Read lines "relative/path label"; ValueError names the first line of another form."""
    samples = []
    for number, line in enumerate(Path(file).read_text().splitlines(), start=1):
        path, _, label = line.strip().rpartition(' ')
        if not path or not label.isdigit():
            raise ValueError(
                f'{file}, line {number}: expected "relative/path label" with one space before a '
                f'label from 0, got {line!r}'
            )
        samples.append((path, int(label)))
    if not samples:
        raise ValueError(f'{file} is empty; expected lines "relative/path label"')
    return samples


def class_of(path: str) -> str | None:
    """Return the first folder of a path below train/ or val/, None if it lies in none."""
    return path.split('/')[0] if '/' in path else None


def folder_samples(names: list[str]) -> Samples:
    """Label images by their class folder, in sorted order as mmpretrain's CustomDataset does."""
    classes = sorted({class_of(name) for name in names if '/' in name})
    index = {name: i for i, name in enumerate(classes)}
    return [(name, index[class_of(name)]) for name in names if '/' in name]


def check_imagenet(
    root: str | Path,
    num_classes: int | None = None,
    lists: dict[str, str] | None = None,
    order: list[str] | None = None,
    write_to: str | Path | None = None,
    **reading,
) -> Report:
    """Check ROOT/train and ROOT/val, each a folder per class, or flat with a list.

    Args:
        root: the data set.
        num_classes: expected; default: 1,000 if the folders look like ImageNet-1k.
        lists: split -> file of "relative/path label", relative to `root`.
        order: class names by the labels of the lists, for flat folders.
        write_to: folder for `write_lists`, which waits until the layout is right.
        reading: `decode`, `workers` and `watch` of `inspect_images`.
    """
    root, report, names, samples = Path(root), Report(), {}, {}
    for split in SPLITS:
        if _split_exists(root, split, report):
            names[split] = list_images(root / split, report)
            if list_file := (lists or {}).get(split):
                samples[split] = read_list(root / list_file)
                _check_list(split, samples[split], names[split], report)
            else:
                _check_folders(root, split, names[split], report)
                samples[split] = folder_samples(names[split])
    orders = {split: label_names(samples[split], order, split, report) for split in samples}
    _check_classes(orders, samples, num_classes, report)
    layout_is_right = not report.errors
    usable = {
        split: inspect_images(root / split, found, report, **reading)
        for split, found in names.items()
    }
    if write_to and layout_is_right:
        write_lists(Path(write_to), samples, usable, orders, report)
    elif write_to:
        report.facts.append('no lists written: the layout has to be right first')
    return report


def _split_exists(root: Path, split: str, report: Report) -> bool:
    if (root / split).is_dir():
        return True
    inner = next((p.parent for p in root.glob(f'*/*/{split}')), None) or next(
        (p.parent for p in root.glob(f'*/{split}')), None
    )
    hint = f'; there is one in {inner}: give that folder' if inner else ''
    report.error(f'no folder {root / split}{hint}')
    return False


def _check_folders(root: Path, split: str, names: list[str], report: Report) -> None:
    folders = sorted(p.name for p in (root / split).iterdir() if p.is_dir())
    flat = [name for name in names if '/' not in name]
    archives = list((root / split).glob('*.tar'))
    if archives:
        report.error(f'{split}/ holds {len(archives)} .tar files: unpack each into its own folder')
    elif flat and not folders:
        report.error(
            f'{split}/ holds {len(flat)} images and no class folders. Move each image into the '
            f'folder of its class, named as in train/ (ILSVRC2012: by the validation ground truth '
            f'of the development kit), or give a list of "path label" lines (--{split}-list)'
        )
    elif flat:
        report.note(f'image beside the class folders of {split}/: not read', *flat)
    for name in sorted(set(folders) - {class_of(name) for name in names}):
        report.error(
            'class folder without images (it takes a label: fill it or delete it)',
            f'{split}/{name}',
        )


def _check_list(split: str, samples: Samples, names: list[str], report: Report) -> None:
    on_disk, counts = set(names), Counter(path for path, _ in samples)
    if missing := [path for path in counts if path not in on_disk]:
        report.error(
            f'{split} list: no such file below {split}/ (paths start below it)', *sorted(missing)
        )
    if twice := sorted(path for path, count in counts.items() if count > 1):
        report.error(f'{split} list: path given more than once', *twice)
    if unlisted := sorted(on_disk - set(counts)):
        report.note(f'{split}/ holds an image that the list leaves out: not used', *unlisted)
    labels = sorted({label for _, label in samples})
    if labels != list(range(len(labels))):
        first = f'; labels start at {labels[0]}, subtract it' if labels[0] else ''
        report.error(
            f'{split} list: {len(labels)} labels up to {labels[-1]}, expected each of '
            f'0..{len(labels) - 1}{first}'
        )


def label_names(
    samples: Samples, order: list[str] | None, split: str, report: Report
) -> dict[int, str]:
    """Return the class name of each label: from `order`, else from the folders in the paths."""
    found: dict[int, set[str | None]] = {}
    for path, label in samples:
        found.setdefault(label, set()).add(class_of(path))
    names = {label: min(map(str, folders)) for label, folders in found.items()}
    for label, folders in found.items():
        if None in folders:  # a flat folder
            names[label] = order[label] if order and label < len(order) else ''
        elif len(folders) > 1:
            listed = ', '.join(sorted(map(str, folders)))
            report.error(f'{split} list: one label for several folders', f'{label} = {listed}')
        elif order and names[label] != (order[label] if label < len(order) else None):
            report.error(f'{split} list: folder differs from the label order', f'{label}')
    used_twice = [name for name, count in Counter(names.values()).items() if name and count > 1]
    if used_twice:
        report.error(f'{split} list: several labels for one folder', *sorted(used_twice))
    return names


def _check_classes(
    orders: dict[str, dict[int, str]],
    samples: dict[str, Samples],
    expected: int | None,
    report: Report,
) -> None:
    for split, names in orders.items():
        counts = Counter(label for _, label in samples[split])
        if not counts:
            continue
        report.facts.append(_count_line(split, counts, names))
        _check_numbers(split, names, len(samples[split]), expected, report)
        in_order = [names[label] for label in sorted(names)]
        if '' not in in_order and in_order != sorted(in_order):
            report.note(
                f'{split}: the labels are not in sorted order of the class names. Training and '
                'testing with the same lists is fine. A head belongs to one order: sort a released '
                'one by tools/convert_checkpoint.py --label-order, the lists by --write-lists'
            )
    if len(orders) == 2 and all(orders.values()):
        train, val = (orders[split] for split in SPLITS)
        known = [set(names.values()) - {''} for names in (train, val)]
        if all(known) and known[0] != known[1]:
            report.error('class in train/ or val/ only', *sorted(known[0] ^ known[1]))
        elif len(train) != len(val):
            report.error(f'train has {len(train)} classes, val {len(val)}')
        elif all(known) and train != val:
            report.error('train and val give one label to different classes: use lists of a kind')


def _count_line(split: str, counts: Counter, names: dict[int, str]) -> str:
    values = counts.values()
    line = (
        f'{split}: {sum(values)} images in {len(counts)} classes, '
        f'{min(values)} / {statistics.median_low(values)} / {max(values)} per class'
    )
    if len(counts) <= 20:
        line += ': ' + ', '.join(f'{names[i] or i} {counts[i]}' for i in sorted(counts))
    return line


def _check_numbers(
    split: str, names: dict[int, str], images: int, expected: int | None, report: Report
) -> None:
    wordnet = all(name == '' or WORDNET_ID.fullmatch(name) for name in names.values())
    imagenet = expected is None and 500 < len(names) <= 1000 and wordnet
    expected = 1000 if imagenet else expected
    if expected and len(names) != expected:
        report.error(f'{split}: {len(names)} classes, expected {expected} (--classes)')
    if imagenet and images != IMAGENET[split]:
        report.error(f'{split}: {images} images, ImageNet-1k has {IMAGENET[split]}')
    if not imagenet and expected is None and len(names) != 1000 and split == 'train':
        report.note(
            f'{len(names)} classes, not 1,000: take an imagefolder config with '
            f'MCBEIT_CLASSES={len(names)}'
        )


def write_lists(
    folder: Path,
    samples: dict[str, Samples],
    usable: dict[str, dict[str, ImageInfo]],
    orders: dict[str, dict[int, str]],
    report: Report,
) -> None:
    """Write train.txt and val.txt with the readable images, and classes.txt.

    Labels are in sorted order of the class names where these are known; label_order.txt has the
    names by the given labels if that is another order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = next((n for n in orders.values() if n and '' not in n.values()), None)
    classes = sorted(known.values()) if known else []
    index = {name: i for i, name in enumerate(classes)}
    for split, entries in samples.items():
        names = known if known else orders[split]
        lines = [
            f'{path} {index[names[label]] if known else label}'
            for path, label in entries
            if path in usable[split]
        ]
        (folder / f'{split}.txt').write_text('\n'.join(lines) + '\n')
        report.facts.append(f'wrote {folder / split}.txt: {len(lines)} of {len(entries)} images')
    if classes:
        (folder / 'classes.txt').write_text('\n'.join(classes) + '\n')
        given = [known[label] for label in sorted(known)]
        if given != classes:
            (folder / 'label_order.txt').write_text('\n'.join(given) + '\n')
            report.facts.append(
                f'wrote {folder}/label_order.txt: the classes in the order of the given lists, for '
                'tools/convert_checkpoint.py --label-order'
            )
