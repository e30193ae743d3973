"""Writing packs, which `shards.py` reads: image folders into tar files, an index of archives.

A row of the index: name, shard, offset, length, CRC-32 of the image, its size after inflating or
AS_IT_IS.
"""

import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import numpy as np

from ..fileio.atomic_files import write_atomically
from .shards import AS_IT_IS, FORMAT, INDEX

BLOCK = tarfile.BLOCKSIZE  # what a member is padded to
LOCAL_SIGNATURE = b'PK\x03\x04'
LOCAL_HEADER = struct.Struct('<26xHH')  # lengths of name and extra field, which follow
DEFLATE_RATIO = 1032  # at most: 258 bytes in two bits
ENCRYPTED = 1  # bit of a zip member's flags
Member = tuple[str, int, int, int, int, int]
Place = tuple[str, int, int, int, int]  # a member without its shard


def pack_folder(
    images: Iterable[tuple[str, Path]], out: str | os.PathLike, shard_bytes: int = 2**30
) -> int:
    """Write images (name, file), bytes untouched, into tar files of about a size; their number.

    The index comes last: without it a pack is refused.
    """
    out = Path(out)
    members: list[Member] = []
    for number, group in enumerate(_groups(images, shard_bytes)):
        with tarfile.open(out / shard_name(number), 'w', format=tarfile.PAX_FORMAT) as tar:
            for name, file in group:
                data = file.read_bytes()
                info = tarfile.TarInfo(checked_name(name))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                start = tar.offset - -(-len(data) // BLOCK) * BLOCK
                place = start, len(data), crc32(data), AS_IT_IS
                members.append((name, number, *place))
    shards = sorted({shard_name(member[1]) for member in members})
    _write_index(out, members, shards)
    return len(members)


def index_archives(folder: str | os.PathLike) -> int:
    """Index tar and zip files that are there, each a folder named by its stem; number of images.

    Of a zip only the headers are read: it states the CRC-32 of its members itself.

    Raises:
        ValueError: no archive, one that is damaged, a compressed tar, a zip's member that is
            encrypted or compressed other than by deflate, or a name given twice.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.iterdir() if file.suffix in MEMBERS)
    members: list[Member] = []
    for number, file in enumerate(files):
        for name, *place in MEMBERS[file.suffix](file):
            members.append((checked_name(f'{file.stem}/{name}'), number, *place))
    _write_index(folder, members, [file.name for file in files])
    return len(members)


def _tar_members(file: Path) -> Iterator[Place]:
    try:
        with tarfile.open(file, 'r:') as tar, open(file, 'rb') as raw:
            for info in tar:
                if info.isfile():
                    raw.seek(info.offset_data)
                    data = raw.read(info.size)
                    if len(data) != info.size:
                        raise tarfile.ReadError(f'{info.name} is cut short')
                    yield info.name, info.offset_data, info.size, crc32(data), AS_IT_IS
    except tarfile.TarError as error:
        raise ValueError(f'{file} is damaged or compressed: {error}') from error


def _zip_members(file: Path) -> Iterator[Place]:
    try:
        with zipfile.ZipFile(file) as archive, open(file, 'rb') as raw:
            for info in archive.infolist():
                # A link would be read as the path that it holds; tar files' are passed over too.
                if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                    yield _zip_place(file, raw, info)
    # Of names that are not in the encoding they state, and of newer versions of the format.
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise ValueError(f'{file} is damaged or no zip file: {error}') from error


def _zip_place(file: Path, raw: BinaryIO, info: zipfile.ZipInfo) -> Place:
    """Where a member's data lies: behind its local header, whose length only that header says."""
    if info.flag_bits & ENCRYPTED:
        raise ValueError(f'{file}: {info.filename} is encrypted; unpack the archive')
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f'{file}: {info.filename} is compressed by method {info.compress_type}, expected '
            '0 (stored) or 8 (deflate); unpack the archive'
        )
    size = os.fstat(raw.fileno()).st_size
    raw.seek(min(max(info.header_offset, 0), size))
    header = raw.read(LOCAL_HEADER.size)
    if not header.startswith(LOCAL_SIGNATURE) or len(header) < LOCAL_HEADER.size:
        raise zipfile.BadZipFile(f'no header of {info.filename} where its list says')
    start = raw.tell() + sum(LOCAL_HEADER.unpack(header))
    if start + info.compress_size > size:
        raise zipfile.BadZipFile(f'{info.filename} is cut short')
    stored = info.compress_type == zipfile.ZIP_STORED
    largest = info.compress_size * (1 if stored else DEFLATE_RATIO)
    if info.file_size > largest or stored and info.file_size < largest:
        raise zipfile.BadZipFile(
            f'{info.filename} states {info.file_size} bytes, packed in {info.compress_size}'
        )
    inflated = AS_IT_IS if stored else info.file_size
    return info.filename, start, info.compress_size, info.CRC, inflated


MEMBERS = {'.tar': _tar_members, '.zip': _zip_members}


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f'{number:06}.tar'


def checked_name(name: str) -> str:
    """The name; ValueError if it leads out of the pack."""
    if not name or any(part in ('', '.', '..') for part in name.split('/')):
        raise ValueError(f'{name!r} is no name for an image of a pack')
    return name


def _groups(
    images: Iterable[tuple[str, Path]], shard_bytes: int
) -> Iterator[list[tuple[str, Path]]]:
    group, size = [], 0
    for name, file in images:
        group.append((name, file))
        size += file.stat().st_size
        if size >= shard_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_index(folder: Path, members: list[Member], shards: list[str]) -> None:
    if not members:
        raise ValueError(f'no image to pack into {folder}')
    names = np.array([os.fsencode(member[0]) for member in members])
    order = np.argsort(names, kind='stable')
    names = names[order]
    if (twice := names[1:] == names[:-1]).any():
        raise ValueError(f'{os.fsdecode(names[1:][twice][0])} is there twice in {folder}')
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=FORMAT,
        names=names,
        places=np.array([member[1:] for member in members], np.int64)[order],
        shards=np.array([os.fsencode(shard) for shard in shards]),
        sizes=np.array([(folder / shard).stat().st_size for shard in shards], np.int64),
    )
    write_atomically(folder / INDEX, buffer.getvalue())
