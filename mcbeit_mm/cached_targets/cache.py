"""Cached targets on disk: what a tokenizer said of a fixed set of crops of each image.

A cache is a folder of `targets-NNNNN.bin` and a manifest, `cache.json`, which is written last. The
files hold records of one size (token_records.py), image by image and crop by crop, each after a
head of eight bytes: the CRC-32 of what follows, and that of the image's name and size.
"""

import errno
import json
import os
import struct
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ..errors import SetupError
from .records import RecordFormat

MANIFEST, UNFINISHED = 'cache.json', 'unfinished.json'
FORMAT = 1
HEAD = struct.Struct('<II')
NO_IMAGE = 0  # the head's second number where the image could not be read


@dataclass(frozen=True)
class CachePlan:
    """What a cache holds: `crop` are the arguments of TwoViewRandomResizedCrop, `tokenizer` is the
    identity of the tokenizer and its precision, `stride` its pixels per token.
    """

    record: RecordFormat
    num_images: int
    num_crops: int
    seed: int
    images_per_file: int
    stride: int
    crop: dict[str, Any]
    tokenizer: dict[str, Any]

    @property
    def bytes_per_crop(self) -> int:
        """Size of a record with its head."""
        return HEAD.size + self.record.num_bytes

    @property
    def num_bytes(self) -> int:
        """Size of all files together, without the manifest."""
        return self.num_images * self.num_crops * self.bytes_per_crop

    @property
    def num_files(self) -> int:
        """Number of files."""
        return -(-self.num_images // self.images_per_file)

    def images_of(self, number: int) -> range:
        """Indices of the images in a file."""
        start = number * self.images_per_file
        return range(start, min(start + self.images_per_file, self.num_images))

    def size_of(self, number: int) -> int:
        """Bytes of a file."""
        return len(self.images_of(number)) * self.num_crops * self.bytes_per_crop

    def as_json(self, **more: Any) -> str:
        """The manifest, with more entries."""
        content = asdict(self) | dict(format=FORMAT, record=self.record._asdict())
        return json.dumps(content | more, indent=2) + '\n'

    @classmethod
    def from_json(cls, file: Path) -> 'CachePlan':
        """Read a manifest; ValueError if it is none, or of another format."""
        try:
            content = json.loads(file.read_text())
            if content['format'] != FORMAT:
                raise ValueError(f'format {content["format"]}, expected {FORMAT}')
            record = content['record'] | dict(grid=tuple(content['record']['grid']))
            names = set(cls.__dataclass_fields__) - {'record'}
            return cls(RecordFormat(**record).check(), **{name: content[name] for name in names})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{file} is no manifest of cached targets: {error!r}') from error


def file_name(number: int) -> str:
    """Name of a file of records."""
    return f'targets-{number:05}.bin'


def image_check(path: str | os.PathLike, shape: tuple[int, int]) -> int:
    """A number that another image, or the same at another size (H, W), most likely has not."""
    text = f'{os.path.basename(path)} {shape[0]}x{shape[1]}'
    return crc32(text.encode(errors='surrogateescape')) or 1


class TargetCache:
    """A finished cache, opened for reading.

    Raises:
        FileNotFoundError: no manifest, or a missing file of records.
        ValueError: a manifest of another kind, or a file of another size than it says.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            state = 'is unfinished' if (self.folder / UNFINISHED).is_file() else 'has none'
            raise FileNotFoundError(
                f'no cached targets: {self.folder} {state}; run tools/cache_targets.py'
            )
        self.plan = CachePlan.from_json(manifest)
        self.record, self.stride = self.plan.record, self.plan.stride
        for number in range(self.plan.num_files):
            file = self.folder / file_name(number)
            if not file.is_file():
                raise FileNotFoundError(f'{file} is missing, {manifest} counts it')
            if file.stat().st_size != self.plan.size_of(number):
                raise ValueError(
                    f'{file} has {file.stat().st_size} bytes, expected '
                    f'{self.plan.size_of(number)}: copy it again'
                )
        self.files: dict[int, int] = {}

    def read(self, index: int, crop: int, check: int) -> np.ndarray:
        """Record (num_bytes,) uint8 of a crop of an image.

        Args:
            check: `image_check` of the image that the caller has.

        Raises:
            SetupError: the cache was made from other data.
            OSError: the file holds other bytes than were written.
        """
        plan = self.plan
        number, place = divmod(index, plan.images_per_file)
        if index >= plan.num_images:
            raise SetupError(
                f'{self.folder} has targets of {plan.num_images} images, asked for image {index}: '
                'the cache was made from other data'
            )
        if number not in self.files:
            self.files[number] = os.open(self.folder / file_name(number), os.O_RDONLY)
        size = plan.bytes_per_crop
        # Not seek and read: forked workers share the position in a file.
        data = os.pread(self.files[number], size, (place * plan.num_crops + crop) * size)
        checksum, image = HEAD.unpack_from(data) if len(data) == size else (None, None)
        if checksum != crc32(memoryview(data)[4:]):
            raise OSError(
                errno.EIO,
                f'damaged: other bytes than cached for crop {crop} of image {index}',
                str(self.folder / file_name(number)),
            )
        if image == NO_IMAGE:
            raise OSError(
                errno.EIO, 'the image could not be read when its targets were cached', str(index)
            )
        if image != check:
            raise SetupError(
                f'image {index} is not the one that {self.folder} has targets of, or has another '
                'size: the cache was made from other data'
            )
        return np.frombuffer(data, np.uint8, offset=HEAD.size).copy()  # torch wants to own it


open_cache = cache(TargetCache)
