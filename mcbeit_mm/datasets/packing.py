"""Write packs for `shards.py`: image folders as tar files, and indexes of existing archives."""

import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from ..fileio.atomic_files import write_atomically
from .shards import FORMAT, INDEX, STORED, read_member

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif')
LENGTHS = 26  # offset in a zip member's local header: lengths of name and extra field
Place = tuple[int, int, int, int]  # offset, length, CRC-32, inflated size or STORED
Member = tuple[str, int, Place]  # name, number of its shard, place


def pack_images(folder: str | os.PathLike, out: str | os.PathLike, shard_bytes: int = 2**30) -> int:
    """Copy the images below a folder into tar files of about `shard_bytes`; return their number.

    The index is written last: a pack without it is refused, and packing again starts over.

    Raises:
        FileNotFoundError: no such folder.
        FileExistsError: `out` holds other files than those of an unfinished pack.
        ValueError: no image in the folder.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}')
    out.mkdir(parents=True, exist_ok=True)
    leftovers = set(out.iterdir())
    if leftovers - {out / f'{number:06}.tar' for number in range(len(leftovers))}:
        raise FileExistsError(f'{out} holds other files: choose an empty folder')
    for leftover in leftovers:
        leftover.unlink()
    files = sorted(file for file in folder.rglob('*') if file.suffix.lower() in EXTENSIONS)
    members: list[Member] = []
    shards: list[str] = []
    while len(members) < len(files):
        shards.append(f'{len(shards):06}.tar')
        with tarfile.open(out / shards[-1], 'w', format=tarfile.PAX_FORMAT) as tar:
            for file in files[len(members) :]:
                name = file.relative_to(folder).as_posix()
                members.append((name, len(shards) - 1, _add(tar, name, file.read_bytes())))
                if tar.offset >= shard_bytes:
                    break
    _write_index(out, members, shards)
    return len(members)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> Place:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded, len(data), crc32(data), STORED


def index_archives(folder: str | os.PathLike) -> int:
    """Index the tar and zip files of a folder, each as a folder named by its stem.

    Archives are read whole: what is indexed can be read.

    Returns:
        The number of images.

    Raises:
        ValueError: no archive, a damaged one, a compressed tar, a zip member that is encrypted or
            compressed other than by deflate, or a duplicate name.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    members: list[Member] = []
    for number, file in enumerate(files):
        try:
            for name, place in READERS[file.suffix](file):
                members.append((f'{file.stem}/{name}', number, place))
        except DAMAGED as error:
            raise ValueError(f'{file} is damaged or compressed: {error}') from error
    _write_index(folder, members, [file.name for file in files])
    return len(members)


def _read_tar(file: Path) -> Iterator[tuple[str, Place]]:
    size = file.stat().st_size
    with tarfile.open(file, 'r:') as tar, open(file, 'rb') as raw:
        for info in tar:
            if info.isfile():
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError(f'{info.name} is cut short')
                data = os.pread(raw.fileno(), info.size, info.offset_data)
                yield info.name, (info.offset_data, info.size, crc32(data), STORED)


def _read_zip(file: Path) -> Iterator[tuple[str, Place]]:
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive, open(file, 'rb') as raw:
        for info in archive.infolist():
            # A link would be read as its target's path; links in tar files are skipped too.
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                continue
            stored = info.compress_type == zipfile.ZIP_STORED
            if info.flag_bits & 1 or not stored and info.compress_type != zipfile.ZIP_DEFLATED:
                raise ValueError(
                    f'{file}: {info.filename} is encrypted or compressed by method '
                    f'{info.compress_type}, expected 0 (stored) or 8 (deflate); unpack the archive'
                )
            raw.seek(info.header_offset + LENGTHS)
            offset = sum(struct.unpack('<HH', raw.read(4))) + raw.tell()
            place = offset, info.compress_size, info.CRC, STORED if stored else info.file_size
            wrong_size = stored and info.compress_size != info.file_size
            cut = offset + info.compress_size > size
            if wrong_size or cut or read_member(raw.fileno(), *place) is None:
                raise zipfile.BadZipFile(f'{info.filename} does not match its size or CRC-32')
            yield info.filename, place


READERS = {'.tar': _read_tar, '.zip': _read_zip}
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    NotImplementedError,  # a newer version of the zip format
    UnicodeDecodeError,  # names in another encoding than stated
    struct.error,  # offsets and sizes out of range
    OverflowError,
)


def _write_index(folder: Path, members: Iterable[Member], shards: list[str]) -> None:
    if not members:
        raise ValueError(f'no image to pack in {folder}')
    for name, *_ in members:
        if any(part in ('', '.', '..') for part in name.split('/')):
            raise ValueError(f'{name!r} is not a valid name for an image of a pack')
    names = np.array([os.fsencode(name) for name, *_ in members])
    order = np.argsort(names, kind='stable')
    names = names[order]
    if (duplicate := names[1:] == names[:-1]).any():
        raise ValueError(f'duplicate name in {folder}: {os.fsdecode(names[1:][duplicate][0])}')
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=FORMAT,
        names=names,
        places=np.array([(shard, *place) for _, shard, place in members], np.int64)[order],
        shards=np.array([os.fsencode(shard) for shard in shards]),
        sizes=np.array([(folder / shard).stat().st_size for shard in shards], np.int64),
    )
    write_atomically(folder / INDEX, buffer.getvalue())
