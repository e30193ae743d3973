"""Check a data set of any layout: one entry point for the command line and Python."""

from pathlib import Path

from .ade20k import check_ade20k
from .coco import check_coco
from .common import EXTENSIONS, Report, inspect_image, list_images, open_files
from .imagenet import check_imagenet


def check_dataset(
    layout: str, root: str | Path, out: str | Path | None = None, **options
) -> Report:
    """Check a data set; docs/transfer.md describes the layouts.

    Args:
        layout: 'imagenet', 'ade20k', 'coco' or 'folder'.
        out: file for the report with every problem.
        options: arguments of the layout's check, and `fast`, `workers`, `progress` of `open_files`.

    Raises:
        FileNotFoundError: the folder, or a list named in `options`, does not exist.
        ValueError: a list is malformed.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f'no folder {root}')
    report = CHECKS[layout](root, **options)
    if out:
        Path(out).write_text(report.text(examples=None) + '\n')
    return report


def check_folder(root: str | Path, **reading) -> Report:
    """Check a tree of unlabeled images, for pretraining or tokenizer training."""
    root, report = Path(root), Report()
    names = list_images(root, report)
    report.facts.append(f'{len(names)} images')
    if not names:
        report.error(f'no image ({", ".join(EXTENSIONS)}) below {root}')
    open_files(inspect_image, root, names, report, **reading)
    return report


CHECKS = dict(imagenet=check_imagenet, ade20k=check_ade20k, coco=check_coco, folder=check_folder)
