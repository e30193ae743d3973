"""Shared by the checks of all layouts: the report, finding images, opening each of them."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
ALPHA = 'image with transparency (dropped)'
DEEP = '16-bit or float image (16-bit: the high byte is used; float: refused)'
ROTATED = 'EXIF rotation (applied: masks and boxes must match the rotated image)'


class ImageInfo(NamedTuple):
    """An opened image: (width, height) after EXIF rotation; `error` is empty if it is usable."""

    size: tuple[int, int] = (0, 0)
    error: str = ''
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """Facts to print, errors that break a run, and notes; errors and notes: kind -> places."""

    facts: list[str] = field(default_factory=list)
    errors: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def error(self, kind: str, *places: str) -> None:
        """Add an error with the files, annotations or classes it concerns."""
        self.errors.setdefault(kind, []).extend(places)

    def note(self, kind: str, *places: str) -> None:
        """Add a note on something that does not break a run."""
        self.notes.setdefault(kind, []).extend(places)

    def add(
        self,
        errors: dict[str, Iterable] | None = None,
        notes: dict[str, Iterable] | None = None,
        prefix: str = '',
    ) -> None:
        """Add the kinds that concern any place; `prefix` goes before each kind."""
        for known, found in ((self.errors, errors), (self.notes, notes)):
            for kind, places in (found or {}).items():
                if places := [str(place) for place in places]:
                    known.setdefault(prefix + kind, []).extend(places)

    def text(self, examples: int | None = 3) -> str:
        """Format the report with up to `examples` places per kind; None: all, one per line."""
        lines = list(self.facts)
        for level, found in (('ERROR', self.errors), ('note ', self.notes)):
            for kind, places in found.items():
                head = f'{level} {len(places)} x {kind}' if places else f'{level} {kind}'
                if examples is None:
                    lines += [head, *(f'    {place}' for place in places)]
                elif places:
                    more = ', ...' if len(places) > examples else ''
                    lines.append(f'{head}: {", ".join(places[:examples])}{more}')
                else:
                    lines.append(head)
        count = sum(max(len(places), 1) for places in self.errors.values())
        lines.append(f'{count or "no"} problem{"s" * (count != 1)}')
        return '\n'.join(lines)


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
    """Return the images below `folder` that the data sets read; report other and odd names."""
    files = list_files(folder)
    hidden = [name for name in files if os.path.basename(name).startswith('.')]
    images = [name for name in files if name.lower().endswith(EXTENSIONS)]
    images = sorted(set(images) - set(hidden))
    report.add(
        errors={ODD_NAME: [repr(f'{folder.name}/{name}') for name in images if _is_odd(name)]},
        notes={
            'not an image by its name or extension: skipped': [
                f'{folder.name}/{name}' for name in sorted(set(files) - set(images))
            ]
        },
    )
    return images


def _is_odd(name: str) -> bool:
    return not name.isprintable() or any(part != part.strip() for part in name.split('/'))


def inspect_image(path: str, fast: bool = False) -> ImageInfo:
    """Open an image as training does; `fast` reads only its header."""
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # broken EXIF
            image = open_image(file)
            notes = tuple(_notes(image))
            if not fast:
                file.seek(0)
                read_image(file.read(), enough_pixels=1)  # decodes all of a JPEG, but at 1/8
        return ImageInfo(image.size[::-1] if ROTATED in notes else image.size, notes=notes)
    except BadImageError as error:
        return ImageInfo(error=str(error))
    except FileNotFoundError:
        return ImageInfo(error='link to a missing file')
    except PermissionError:
        return ImageInfo(error='no permission to read the file')
    except Exception as error:  # Pillow's plugins raise anything
        return ImageInfo(error=f'damaged image: {error!r}')


def _notes(image: Image.Image) -> Iterator[str]:
    if image.mode in ('RGBA', 'LA', 'PA'):
        yield ALPHA
    elif image.mode[0] in 'IF':
        yield DEEP
    exif = Image.Image.getexif(image)  # PNG's own method would decode the image
    if exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
        yield ROTATED


def map_files(function: Callable, paths: list, workers: int = 1, progress: bool = False) -> list:
    """Apply a module-level function to every path, in `workers` processes, in order."""
    bar = dict(total=len(paths), console=Console(stderr=True), disable=not progress)
    if workers <= 1 or len(paths) < 2 * workers:
        return list(track(map(function, paths), 'images', **bar))
    with ProcessPoolExecutor(workers) as pool:
        chunk = min(64, -(-len(paths) // (4 * workers)))
        return list(track(pool.map(function, paths, chunksize=chunk), 'images', **bar))


def inspect_images(
    folder: Path, names: list[str], report: Report, fast: bool = False, **running
) -> dict[str, tuple[int, int]]:
    """Open the files `folder`/name, report their problems; return the sizes of the usable ones.

    Args:
        running: `workers` and `progress` of `map_files`.
    """
    paths = [os.path.join(folder, name) for name in names]
    infos = map_files(partial(inspect_image, fast=fast), paths, **running)
    sizes = {}
    for name, info in zip(names, infos, strict=True):
        place = f'{folder.name}/{name}'
        if info.error:
            kind, _, detail = info.error.partition(': ')
            report.error(kind, f'{place} ({detail})' if detail else place)
        else:
            sizes[name] = info.size
            report.add(notes={note: [place] for note in info.notes})
    return sizes
