"""Check train/ and val/ with a folder per class, or with lists of "path label"; write lists."""

import re
from pathlib import Path

from .common import Report, inspect_image, list_images, open_files, repeated

SPLITS = ('train', 'val')
IMAGENET = dict(train=1_281_167, val=50_000)  # images of ImageNet-1k
WORDNET_ID = re.compile(r'n\d{8}')
Samples = list[tuple[str, int]]  # path below the folder of its split, label
Names = dict[int, str]  # label -> class name, '' if unknown


def read_list(file: str | Path) -> Samples:
    """Read lines "relative/path label"; ValueError names the first malformed line."""
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


def check_imagenet(
    root: str | Path,
    classes: int | None = None,
    train_list: str | None = None,
    val_list: str | None = None,
    label_order: str | Path | None = None,
    write_lists: str | Path | None = None,
    **reading,
) -> Report:
    """Check ROOT/train and ROOT/val, each with a folder per class, or flat with a list.

    Args:
        classes: expected number; default: 1,000 if the folders look like ImageNet-1k.
        train_list: file of "relative/path label", relative to `root`; `val_list` likewise.
        label_order: file of class names by label, for flat folders.
        write_lists: folder for new lists of the readable images, if the layout is right.
        reading: see `open_files`.
    """
    root, report = Path(root), Report()
    order = Path(label_order).read_text().split() if label_order else None
    found, samples, names = {}, {}, {}
    for split, file in zip(SPLITS, (train_list, val_list), strict=True):
        if _find_split(root, split, report):
            found[split] = list_images(root / split, report)
            samples[split] = _label_images(root, split, file, found[split], report)
            names[split] = _name_labels(samples[split], order, split, report)
            if samples[split]:
                _check_classes(split, len(samples[split]), names[split], classes, report)
    if all(map(names.get, SPLITS)):
        _compare_splits(*names.values(), report)
    layout_is_right = not report.errors
    usable = {s: open_files(inspect_image, root / s, found[s], report, **reading) for s in found}
    if write_lists and layout_is_right:
        readable = {split: [s for s in samples[split] if s[0] in usable[split]] for split in names}
        _write_lists(Path(write_lists), readable, names, report)
    elif write_lists:
        report.facts.append('no lists written: fix the layout first')
    return report


def _find_split(root: Path, split: str, report: Report) -> bool:
    if (root / split).is_dir():
        return True
    inner = [*root.glob(f'*/*/{split}'), *root.glob(f'*/{split}')]
    hint = f'; found one in {inner[0].parent}: pass that folder' if inner else ''
    report.error(f'no folder {root / split}{hint}')
    return False


def _class_of(path: str) -> str | None:
    return path.split('/')[0] if '/' in path else None


def _label_images(
    root: Path, split: str, file: str | None, images: list[str], report: Report
) -> Samples:
    """Label images by a list, or by class folders in sorted order as mmpretrain's CustomDataset."""
    if file:
        samples = read_list(root / file)
        _check_list(split, samples, images, report)
        return samples
    _check_folders(root / split, images, report)
    inside = [name for name in images if '/' in name]
    index = {name: i for i, name in enumerate(sorted({_class_of(name) for name in inside}))}
    return [(name, index[_class_of(name)]) for name in inside]


def _check_folders(folder: Path, images: list[str], report: Report) -> None:
    split, classes = folder.name, {path.name for path in folder.iterdir() if path.is_dir()}
    flat = [name for name in images if '/' not in name]
    if archives := list(folder.glob('*.tar')):
        report.error(f'{split}/ holds {len(archives)} .tar files: unpack each into its own folder')
    elif flat and not classes:
        report.error(
            f'{split}/ holds {len(flat)} images and no class folders. Move each image into the '
            f'folder of its class, named as in train/ (ILSVRC2012: by the validation ground truth '
            f'of the development kit), or pass a list of "path label" lines (--{split}-list)'
        )
    elif flat:
        report.note(f'image outside the class folders of {split}/: skipped', flat)
    empty = sorted(classes - {_class_of(name) for name in images})
    kind = 'class folder without images (it still takes a label: fill or delete it)'
    report.error(kind, [f'{split}/{name}' for name in empty])


def _check_list(split: str, samples: Samples, images: list[str], report: Report) -> None:
    paths = [path for path, _ in samples]
    missing, unlisted = sorted(set(paths) - set(images)), sorted(set(images) - set(paths))
    report.error(f'{split} list: no such file below {split}/ (paths are relative to it)', missing)
    report.error(f'{split} list: path given more than once', sorted(repeated(paths)))
    report.note(f'image that is not in the {split} list: not used', unlisted)
    labels = sorted({label for _, label in samples})
    if labels != list(range(len(labels))):
        first = f'; labels start at {labels[0]}, subtract it' if labels[0] else ''
        report.error(
            f'{split} list: {len(labels)} labels up to {labels[-1]}, expected each of '
            f'0..{len(labels) - 1}{first}'
        )


def _name_labels(samples: Samples, order: list[str] | None, split: str, report: Report) -> Names:
    """Name each label by the folder in its paths, or by `order` where the folder is flat."""
    folders: dict[int, set[str | None]] = {}
    for path, label in samples:
        folders.setdefault(label, set()).add(_class_of(path))
    names, mixed, differing = {}, [], []
    for label, found in folders.items():
        ordered = order[label] if order and label < len(order) else ''
        names[label] = ordered if None in found else min(found)
        if len(found) > 1 and None not in found:
            mixed.append(f'{label} = {", ".join(sorted(found))}')
        elif order and names[label] != ordered:
            differing.append(label)
    shared = sorted(repeated(filter(None, names.values())))
    report.error(f'{split} list: one label for several folders', mixed)
    report.error(f'{split} list: folder differs from the label order', differing)
    report.error(f'{split} list: several labels for one folder', shared)
    return names


def _check_classes(
    split: str, images: int, names: Names, expected: int | None, report: Report
) -> None:
    report.facts.append(f'{split}: {images} images in {len(names)} classes')
    in_order = [names[label] for label in sorted(names)]
    if '' not in in_order and in_order != sorted(in_order):
        report.note(
            f'{split}: the labels are not in sorted order of the class names. Training and '
            'testing with the same lists is fine. A head belongs to one order: sort a released '
            'one with tools/convert_checkpoint.py --label-order, the lists with --write-lists'
        )
    wordnet = all(name == '' or WORDNET_ID.fullmatch(name) for name in names.values())
    imagenet = expected is None and 500 < len(names) <= 1000 and wordnet
    expected = 1000 if imagenet else expected
    if expected and len(names) != expected:
        report.error(f'{split}: {len(names)} classes, expected {expected} (--classes)')
    if imagenet and images != IMAGENET[split]:
        report.error(f'{split}: {images} images, ImageNet-1k has {IMAGENET[split]}')
    if expected is None and len(names) != 1000 and split == 'train':
        report.note(
            f'{len(names)} classes, not 1,000: use an imagefolder config with '
            f'MCBEIT_CLASSES={len(names)}'
        )


def _compare_splits(train: Names, val: Names, report: Report) -> None:
    known = [set(names.values()) - {''} for names in (train, val)]
    if all(known) and known[0] != known[1]:
        report.error('class in train/ or val/ only', sorted(known[0] ^ known[1]))
    elif len(train) != len(val):
        report.error(f'train has {len(train)} classes, val {len(val)}')
    elif all(known) and train != val:
        report.error('train and val assign one label to different classes: use matching lists')


def _write_lists(
    folder: Path, samples: dict[str, Samples], names: dict[str, Names], report: Report
) -> None:
    """Write train.txt, val.txt and, if the names are known, classes.txt in sorted order.

    label_order.txt gets the names in the order of the given labels if that differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = next((n for n in names.values() if n and '' not in n.values()), {})
    given = [known[label] for label in sorted(known)]
    classes = sorted(given)
    relabel = {label: classes.index(name) for label, name in known.items()}
    lists = {}
    for split, entries in samples.items():
        lists[split] = [f'{path} {relabel.get(label, label)}' for path, label in entries]
        report.facts.append(f'wrote {folder / split}.txt: {len(entries)} readable images')
    if classes:
        lists['classes'] = classes
    if given != classes:
        lists['label_order'] = given
        report.facts.append(
            f'wrote {folder}/label_order.txt: the classes in the order of the given lists, for '
            'tools/convert_checkpoint.py --label-order'
        )
    for name, lines in lists.items():
        (folder / f'{name}.txt').write_text(''.join(f'{line}\n' for line in lines))
