"""Shared by the layout checks: the report, listing images, opening every file."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import track

from ..images import BadImageError, open_image, read_image

# What mmpretrain's CustomDataset reads; it skips other files.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
ODD_NAME = 'control character, undecodable byte or outer space in a file name (rename it)'


class Opened(NamedTuple):
    """Result of opening an image or mask.

    `size` is (width, height) after EXIF rotation, `ids` the class ids of a mask; `error` is empty
    if the file is usable.
    """

    size: tuple[int, int] = (0, 0)
    ids: frozenset[int] = frozenset()
    error: str = ''


@dataclass
class Report:
    """Findings of a check: facts to print, errors that would break a run, and notes.

    `errors` and `notes` map each kind to the places where it occurs.
    """

    facts: list[str] = field(default_factory=list)
    errors: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def error(self, kind: str, places: Iterable | None = None) -> None:
        """Add an error per place (file, annotation or class), or a single one without `places`."""
        _add(self.errors, kind, places)

    def note(self, kind: str, places: Iterable | None = None) -> None:
        """Add a note, which does not break a run; `places` as for `error`."""
        _add(self.notes, kind, places)

    def text(self, examples: int | None = 3) -> str:
        """Format the report with up to `examples` places per kind; None: all, one per line."""
        lines = list(self.facts)
        for level, found in (('ERROR', self.errors), ('note ', self.notes)):
            for kind, places in found.items():
                lines.append(f'{level} {len(places)} x {kind}' if places else f'{level} {kind}')
                if examples is None:
                    lines += [f'    {place}' for place in places]
                elif places:
                    more = ', ...' if len(places) > examples else ''
                    lines[-1] += f': {", ".join(places[:examples])}{more}'
        count = sum(max(len(places), 1) for places in self.errors.values())
        lines.append(f'{count or "no"} problem{"s" * (count != 1)}')
        return '\n'.join(lines)


def _add(findings: dict[str, list[str]], kind: str, places: Iterable | None) -> None:
    places = places and [
        # names that are not UTF-8 cannot be printed
        str(place).encode(errors='backslashreplace').decode()
        for place in places
    ]
    if places is None or places:
        findings.setdefault(kind, []).extend(places or ())


def side_text(size: tuple[int, int]) -> str:
    """Format (width, height)."""
    return f'{size[0]} x {size[1]}'


def repeated(values: Iterable) -> list:
    """Return the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def list_files(folder: str | Path) -> list[str]:
    """Return the sorted paths of all files below `folder`, relative to it, following links."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        inner = os.path.relpath(place, folder)
        found += names if inner == '.' else [f'{inner}/{name}' for name in names]
    return sorted(found)


def list_images(folder: Path, report: Report) -> list[str]:
    """Return the images below `folder` that data sets read; report skipped files, odd names."""
    images, others = [], []
    for name in list_files(folder):
        hidden = os.path.basename(name).startswith('.')
        is_image = name.lower().endswith(EXTENSIONS) and not hidden
        (images if is_image else others).append(name)
    report.error(ODD_NAME, [repr(f'{folder.name}/{name}') for name in images if _is_odd(name)])
    report.note(
        'not an image by its name or extension: skipped', [f'{folder.name}/{x}' for x in others]
    )
    return images


def _is_odd(name: str) -> bool:
    return not name.isprintable() or any(part != part.strip() for part in name.split('/'))


def inspect_image(path: str, fast: bool = False) -> Opened:
    """Open an image as training does; `fast` reads only its header."""
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # broken EXIF
            image = open_image(file)
            exif = Image.Image.getexif(image)  # PNG's own method would decode the image
            turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            if not fast:
                file.seek(0)
                read_image(file.read(), enough_pixels=1)  # decodes all of a JPEG, but at 1/8
        return Opened(image.size[::-1] if turned else image.size)
    except BadImageError as error:
        return Opened(error=str(error))
    except FileNotFoundError:
        return Opened(error='link to a missing file')
    except PermissionError:
        return Opened(error='no permission to read the file')
    except Exception as error:  # Pillow's plugins raise anything
        return Opened(error=f'damaged image: {error!r}')


def open_files(
    inspect: Callable[[str, bool], Opened],
    folder: Path,
    names: list[str],
    report: Report,
    fast: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Opened]:
    """Open the files `folder`/name in `workers` processes; report bad ones, return the rest."""
    paths = [os.path.join(folder, name) for name in names]
    function = partial(inspect, fast=fast)
    bar = dict(total=len(paths), console=Console(stderr=True), disable=not progress)
    if workers <= 1 or len(paths) < 2 * workers:
        opened = list(track(map(function, paths), folder.name, **bar))
    else:
        chunk = min(64, -(-len(paths) // (4 * workers)))
        with ProcessPoolExecutor(workers) as pool:
            results = pool.map(function, paths, chunksize=chunk)
            opened = list(track(results, folder.name, **bar))
    for name, info in zip(names, opened, strict=True):
        if info.error:
            kind, _, detail = info.error.partition(': ')
            report.error(kind, [f'{folder.name}/{name}' + (f' ({detail})' if detail else '')])
    return {name: info for name, info in zip(names, opened, strict=True) if not info.error}
