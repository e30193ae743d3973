"""What all checks of a data set share: the report, finding images, opening each of them."""

import os
import statistics
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..images import BadImageError, check_image, read_image

# What mmpretrain's CustomDataset reads; other files in its folders are passed over.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
FORMATS = {  # extension -> what PIL may call its content; MPO is JPEG with a second picture
    **dict.fromkeys(('.jpg', '.jpeg'), ('JPEG', 'MPO')),
    **dict.fromkeys(('.ppm', '.pgm'), ('PPM',)),
    **{'.png': ('PNG',), '.bmp': ('BMP', 'DIB'), '.tif': ('TIFF',)},
}
MODES = {
    'CMYK': 'CMYK image (converted when read)',
    'P': 'palette image (converted to RGB when read)',
    'PA': 'palette image (converted to RGB when read)',
    'RGBA': 'image with transparency (dropped when read)',
    'LA': 'image with transparency (dropped when read)',
}
DEEP = '16-bit or float image (cv2 scales it to 8 bits, PIL clips it)'
TURNED = 'EXIF rotation (cv2 turns the picture: masks and boxes must be those of the turned one)'
Watch = Callable[[Iterable], Iterable]


class ImageInfo(NamedTuple):
    """One opened file: `error` is empty if it can be used; the size is that after EXIF rotation."""

    path: str
    width: int = 0
    height: int = 0
    error: str = ''
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """Facts to print, errors that break a run, notes worth knowing; kind -> places."""

    facts: list[str] = field(default_factory=list)
    errors: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def error(self, kind: str, *places: str) -> None:
        """Add places (files, annotations, classes) where this is wrong; none: it is said once."""
        self.errors.setdefault(kind, []).extend(places)

    def note(self, kind: str, *places: str) -> None:
        """Add places of what does not stop a run."""
        self.notes.setdefault(kind, []).extend(places)

    def text(self, examples: int | None = 3) -> str:
        """Return the report with this many places of each kind; None: all, one per line."""
        lines = list(self.facts)
        for level, found in (('ERROR', self.errors), ('note ', self.notes)):
            for kind, places in found.items():
                if not places:
                    lines.append(f'{level} {kind}')
                elif examples is None:
                    lines += [f'{level} {len(places)} x {kind}', *(f'    {p}' for p in places)]
                else:
                    more = ', ...' if len(places) > examples else ''
                    shown = ', '.join(places[:examples])
                    lines.append(f'{level} {len(places)} x {kind}: {shown}{more}')
        count = sum(max(len(places), 1) for places in self.errors.values())
        lines.append(f'{count} problem{"s" * (count > 1)}' if count else 'all is well')
        return '\n'.join(lines)


def list_files(folder: str | Path) -> list[str]:
    """Return the sorted paths of all files below `folder`, relative to it, following links."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        inner = os.path.relpath(place, folder)
        found += names if inner == '.' else [f'{inner}/{name}' for name in names]
    return sorted(found)


def list_images(folder: Path, report: Report) -> list[str]:
    """Return the images below `folder` that the data sets read; report other and odd names."""
    images = []
    for name in list_files(folder):
        if os.path.basename(name).startswith('.'):
            report.note('hidden file: not read', f'{folder.name}/{name}')
            continue
        if not name.lower().endswith(EXTENSIONS):
            report.note('no image by its extension: not read', f'{folder.name}/{name}')
            continue
        images.append(name)
        if not name.isprintable() or any(part != part.strip() for part in name.split('/')):
            report.error(
                'control character, undecodable byte or outer space in a file name (rename it)',
                repr(f'{folder.name}/{name}'),
            )
    return images


def inspect_image(path: str, decode: bool = True) -> ImageInfo:
    """Open an image with PIL; `decode=False` reads no further than its header."""
    try:
        if os.path.getsize(path) == 0:
            return ImageInfo(path, error='empty file (copy it again)')
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter('ignore')  # broken EXIF, many pixels
            width, height = image.size
            notes = list(_notes(path, image))
            if TURNED in notes:
                width, height = height, width
            if decode:
                image.draft(None, (1, 1))  # JPEG: reads all data, skips most of the arithmetic
                image.load()
        if _strange_to_cv2(path, image.format):
            return ImageInfo(path, error=f'{image.format} content, which cv2 does not read')
        if decode:  # what training would refuse although Pillow reads it
            data = Path(path).read_bytes()
            read_image(data) if DEEP in notes else check_image(data)
        return ImageInfo(path, width, height, notes=tuple(notes))
    except BadImageError as error:
        return ImageInfo(path, error=str(error))
    except UnidentifiedImageError:
        return ImageInfo(path, error='not an image (or damaged at its beginning)')
    except Image.DecompressionBombError:
        return ImageInfo(path, error='more pixels than PIL agrees to read')
    except FileNotFoundError:
        return ImageInfo(path, error='link to a file that does not exist')
    except PermissionError:
        return ImageInfo(path, error='no permission to read the file')
    except Exception as error:  # decoders raise what they like: SyntaxError, struct.error, ...
        kind = 'truncated' if 'truncated' in str(error).lower() else 'damaged'
        return ImageInfo(path, error=f'{kind} image (copy it again)')


def _notes(path: str, image: Image.Image) -> Iterable[str]:
    if image.mode in MODES:
        yield MODES[image.mode]
    elif image.mode[0] in 'IF':
        yield DEEP
    if image.format not in FORMATS.get(Path(path).suffix.lower(), (image.format,)):
        yield f'{image.format} content under another extension (read by its content)'
    if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
        yield TURNED


def _strange_to_cv2(path: str, kind: str) -> bool:
    if any(kind in formats for formats in FORMATS.values()):
        return False
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is None


def map_files(function: Callable, tasks: list, workers: int, watch: Watch = iter) -> list:
    """Apply a function of a module to every task, in `workers` processes, in order."""
    if workers <= 1 or len(tasks) < 2 * workers:
        return list(watch(map(function, tasks)))
    with ProcessPoolExecutor(workers) as pool:
        chunk = min(64, -(-len(tasks) // (4 * workers)))
        return list(watch(pool.map(function, tasks, chunksize=chunk)))


def inspect_images(
    folder: Path,
    names: list[str],
    report: Report,
    decode: bool = True,
    workers: int = 1,
    watch: Watch = iter,
) -> dict[str, ImageInfo]:
    """Open the files `folder`/name, report what is wrong with them; the usable ones by name."""
    paths = [os.path.join(folder, name) for name in names]
    infos = map_files(partial(inspect_image, decode=decode), paths, workers, watch)
    usable = {}
    for name, info in zip(names, infos, strict=True):
        place = f'{folder.name}/{name}'
        if info.error:
            report.error(info.error, place)
            continue
        usable[name] = info
        for note in info.notes:
            report.note(note, place)
    if usable:
        report.facts.append(f'{folder.name}: {_sizes(list(usable.values()))}')
    return usable


def _sizes(infos: list[ImageInfo]) -> str:
    widths, heights = [i.width for i in infos], [i.height for i in infos]
    parts = [
        f'{name} {min(v)} / {statistics.median_low(v)} / {max(v)}'
        for name, v in (('width', widths), ('height', heights))
    ]
    return f'{", ".join(parts)} pixels (smallest / median / largest)'


def check_folder(root: str | Path, **reading) -> Report:
    """Check a tree of unlabelled photos, as pretraining and tokenizer training take it.

    Args:
        root: folder; images may lie at any depth.
        reading: `decode`, `workers` and `watch` of `inspect_images`.
    """
    root, report = Path(root), Report()
    names = list_images(root, report)
    report.facts.append(f'{len(names)} images')
    if not names:
        report.error(f'no image ({", ".join(EXTENSIONS)}) below {root}')
    inspect_images(root, names, report, **reading)
    return report
