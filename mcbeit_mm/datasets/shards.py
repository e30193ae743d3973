"""Packs: images in a few uncompressed tar files, read at random as `shard://PACK/NAME`.

A pack is a folder of tar files and an `index.npz` with the place of each image. MMEngine's file
functions accept its paths, and with them all data sets and `LoadCheckedImage`.
"""

import errno
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend

from ..fileio.atomic_files import write_atomically

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif')
INDEX = 'index.npz'
FORMAT = 3
PREFIX = 'shard://'


def pack_images(folder: str | os.PathLike, out: str | os.PathLike, shard_bytes: int = 2**30) -> int:
    """Copy the images below a folder into tar files of about `shard_bytes`; return their number.

    The index is written last: a pack without it is unfinished and refused.

    Raises:
        FileNotFoundError: no such folder.
        FileExistsError: `out` is not empty.
        ValueError: no image in the folder.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}')
    files = sorted(file for file in folder.rglob('*') if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise ValueError(f'no image to pack in {folder}')
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f'{out} is not empty: choose another, or delete an unfinished pack')
    packed = shard = 0
    while packed < len(files):
        with tarfile.open(out / f'{shard:06}.tar', 'w', format=tarfile.PAX_FORMAT) as tar:
            for file in files[packed:]:
                info = tarfile.TarInfo(file.relative_to(folder).as_posix())
                info.size = file.stat().st_size
                with open(file, 'rb') as image:
                    tar.addfile(info, image)
                packed += 1
                if tar.offset >= shard_bytes:
                    break
        shard += 1
    return _write_index(out)


def index_tars(folder: str | os.PathLike) -> int:
    """Index the tar files of a folder, each as a folder named by its stem; return the image count.

    Every file is read whole: what is indexed can be read.

    Raises:
        ValueError: no image, a damaged or compressed tar file, or a duplicate or invalid name.
    """
    return _write_index(Path(folder), by_stem=True)


def _write_index(folder: Path, by_stem: bool = False) -> int:
    shards = sorted(folder.glob('*.tar'))
    places: dict[bytes, tuple[int, ...]] = {}
    for number, shard in enumerate(shards):
        for name, *place in _read_tar(shard):
            name = f'{shard.stem}/{name}' if by_stem else name
            if any(part in ('', '.', '..') for part in name.split('/')):
                raise ValueError(f'{name!r} is not a valid name for an image of a pack')
            if (key := os.fsencode(name)) in places:
                raise ValueError(f'duplicate name in {folder}: {name}')
            places[key] = (number, *place)
    if not places:
        raise ValueError(f'no image to pack in {folder}')
    names = sorted(places)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=FORMAT,
        names=np.array(names),
        places=np.array([places[name] for name in names], np.int64),
        shards=np.array([os.fsencode(shard.name) for shard in shards]),
        sizes=np.array([shard.stat().st_size for shard in shards], np.int64),
    )
    write_atomically(folder / INDEX, buffer.getvalue())
    return len(names)


def _read_tar(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, offset, size and CRC-32 of the regular files in a tar file."""
    try:
        with tarfile.open(shard, 'r:') as tar, open(shard, 'rb') as raw:
            for info in tar:
                if info.isfile():
                    data = os.pread(raw.fileno(), info.size, info.offset_data)
                    if len(data) != info.size or info.issparse():
                        raise tarfile.ReadError(f'{info.name} is cut short or sparse')
                    yield info.name, info.offset_data, info.size, zlib.crc32(data)
            # tarfile mistakes a damaged header for the end.
            if os.pread(raw.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b'\0'):
                raise tarfile.ReadError(f'bad header at byte {tar.offset}')
    except (tarfile.TarError, OverflowError, UnicodeError) as error:
        raise ValueError(f'{shard} is damaged or compressed: {error}') from error


class Pack:
    """An opened pack: `names` is sorted, `places` has shard, offset, size and CRC-32 by row.

    Raises:
        FileNotFoundError: no index, or a missing shard.
        ValueError: an index of another format, or a shard of another size than indexed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        file = self.folder / INDEX
        with np.load(file, allow_pickle=False) as index:
            version = int(index['format']) if 'format' in index else None
            if version != FORMAT:
                raise ValueError(f'{file}: format {version}, expected {FORMAT}; pack again')
            self.names, self.places = index['names'], index['places']
            self.shards = [self.folder / os.fsdecode(name) for name in index['shards'].tolist()]
            sizes = index['sizes'].tolist()
        for shard, size in zip(self.shards, sizes, strict=True):
            if (found := shard.stat().st_size) != size:
                raise ValueError(
                    f'{shard} has {found} bytes, {file} lists {size}: copy or pack again'
                )
        self.files: dict[int, int] = {}

    def read(self, name: str) -> bytes:
        """Return the bytes of an image; OSError if they do not match the index."""
        row = self.row(name)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, f'no such image in {self.folder}', name)
        shard, offset, size, checksum = self.places[row].tolist()
        if shard not in self.files:
            self.files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        # pread: forked workers share the file, but no position in it.
        data = os.pread(self.files[shard], size, offset)
        if len(data) != size or zlib.crc32(data) != checksum:
            raise OSError(errno.EIO, f'damaged: CRC-32 mismatch in {self.shards[shard]}', name)
        return data

    def row(self, name: str) -> int | None:
        """Return the row of a name, None if there is none."""
        wanted = os.fsencode(name)
        row = int(np.searchsorted(self.names, np.bytes_(wanted)))
        return row if row < len(self.names) and self.names[row] == wanted else None

    def below(self, folder: str) -> list[str]:
        """Return the names below a folder of the pack ('' for all), relative to it, sorted."""
        start, stop, prefix = 0, len(self.names), b''
        if folder:
            prefix = os.fsencode(folder) + b'/'
            edges = prefix, prefix[:-1] + b'0'  # '0' follows '/'
            start, stop = (int(np.searchsorted(self.names, np.bytes_(edge))) for edge in edges)
        return [os.fsdecode(name[len(prefix) :]) for name in self.names[start:stop].tolist()]


opened: dict[str, Pack] = {}  # by folder


def find_pack(path: str) -> tuple[Pack, str]:
    """Return the pack that a `shard://` path leads into, and the rest of the path."""
    path = os.path.normpath(str(path).removeprefix(PREFIX))
    for root, pack in opened.items():
        if f'{path}/'.startswith(f'{root}/'):
            return pack, path[len(root) + 1 :]
    for folder in (path, *map(str, Path(path).parents)):
        if os.path.isfile(os.path.join(folder, INDEX)):
            opened[folder] = Pack(folder)
            return opened[folder], path[len(folder) + 1 :]
    raise FileNotFoundError(
        f'no pack at {PREFIX}{path}: no {INDEX} in it or its parents; run tools/pack_images.py '
        '(if it did not finish, delete its folder first)'
    )


@register_backend('shard', prefixes='shard', force=True)
class ShardBackend(BaseStorageBackend):
    """Reads `shard://PACK/NAME` for MMEngine's file functions; every path must be in a pack."""

    def get(self, filepath: str) -> bytes:
        """Return the bytes of an image; raises as `Pack.read`."""
        pack, name = find_pack(filepath)
        return pack.read(name)

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Return the text of a member."""
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: str) -> bool:
        """Whether the path is an image or a folder of a pack."""
        return self.isfile(filepath) or self.isdir(filepath)

    def isfile(self, filepath: str) -> bool:
        """Whether the path is an image of a pack."""
        pack, name = find_pack(filepath)
        return pack.row(name) is not None

    def isdir(self, filepath: str) -> bool:
        """Whether there are images below the path."""
        pack, name = find_pack(filepath)
        return bool(pack.below(name))

    def join_path(self, filepath: str, *filepaths: str) -> str:
        """Join paths as LocalBackend does."""
        return os.path.join(filepath, *filepaths)

    def list_dir_or_file(
        self,
        dir_path: str,
        list_dir: bool = True,
        list_file: bool = True,
        suffix: str | tuple[str, ...] | None = None,
        recursive: bool = False,
    ) -> Iterator[str]:
        """Yield paths relative to a folder, sorted, as MMEngine's LocalBackend does."""
        pack, folder = find_pack(dir_path)
        seen = set()
        for name in pack.below(folder):
            parents = [name[:end] for end, letter in enumerate(name) if letter == '/']
            for parent in parents if recursive else parents[:1]:
                if list_dir and parent not in seen:
                    seen.add(parent)
                    yield parent
            if list_file and (recursive or not parents) and (not suffix or name.endswith(suffix)):
                yield name
