"""Image folders packed into a few tar files, read by offset as paths `shard://PACK/NAME`.

A pack is a folder of uncompressed tar files and `index.npz`: where each image lies. MMEngine's file
functions, and with them all data sets and `LoadCheckedImage`, take such paths like any other.
"""

import errno
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend

from .atomic_files import write_atomically

INDEX = 'index.npz'
FORMAT = 1
PREFIX = 'shard://'
BLOCK = tarfile.BLOCKSIZE  # what a member is padded to
Member = tuple[str, int, int, int, int]  # name, shard, offset, length, CRC-32


class Pack:
    """An opened pack; `index` maps the sorted names to places.

    Raises:
        FileNotFoundError: no index (packing did not finish), or a missing shard.
        ValueError: an index of another format, or a shard of another size than it says.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        file = self.folder / INDEX
        if not file.is_file():
            raise FileNotFoundError(
                f'{self.folder} has no {INDEX}: no pack, or packing did not finish; run '
                'tools/pack_images.py'
            )
        with np.load(file, allow_pickle=False) as index:
            if 'format' not in index or int(index['format']) != FORMAT:
                raise ValueError(f'{file} is of another format than {FORMAT}: pack again')
            self.names, self.places = index['names'], index['places']
            shards = index['shards'].tolist()
            sizes = index['sizes'].tolist()
        self.shards = [self.folder / os.fsdecode(name) for name in shards]
        for shard, size in zip(self.shards, sizes, strict=True):
            if not shard.is_file():
                raise FileNotFoundError(f'{shard} is missing, {file} names it')
            if shard.stat().st_size != size:
                got = shard.stat().st_size
                raise ValueError(f'{shard} has {got} bytes, {file} says {size}: copy or pack again')
        self.files: dict[int, int] = {}

    def read(self, name: str) -> bytes:
        """Bytes of a member, compared with their CRC-32.

        Raises:
            FileNotFoundError: no such member.
            OSError: the shard holds other bytes than the packed ones.
        """
        row = self.row(name)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, f'no such image in {self.folder}', name)
        shard, offset, length, checksum = self.places[row].tolist()
        if shard not in self.files:
            self.files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        # Not seek and read: forked workers share the position in a file.
        data = os.pread(self.files[shard], length, offset)
        if len(data) != length or crc32(data) != checksum:
            raise OSError(
                errno.EIO, f'damaged: other bytes than packed, in {self.shards[shard]}', name
            )
        return data

    def row(self, name: str) -> int | None:
        """Place of a name among the sorted ones."""
        wanted = os.fsencode(name)
        row = int(np.searchsorted(self.names, np.bytes_(wanted)))
        return row if row < len(self.names) and self.names[row] == wanted else None

    def below(self, folder: str) -> list[str]:
        """Names below a folder of the pack ('' for all), relative to it, sorted."""
        start, stop = 0, len(self.names)
        skip = len(os.fsencode(folder)) + 1 if folder else 0
        if folder:
            edges = (np.bytes_(os.fsencode(folder) + end) for end in (b'/', b'0'))  # '/' + 1 = '0'
            start, stop = (int(np.searchsorted(self.names, edge)) for edge in edges)
        return [os.fsdecode(name[skip:]) for name in self.names[start:stop].tolist()]


open_pack = cache(Pack)


@lru_cache(maxsize=4096)  # the folders of a data set
def _pack_of(folder: str) -> tuple[str, str]:
    """The pack that a folder path leads into, and the folder's name within."""
    path = Path(folder)
    for pack in (path, *path.parents):
        if (pack / INDEX).is_file():
            name = path.relative_to(pack).as_posix()
            return str(pack), '' if name == '.' else name
    raise FileNotFoundError(
        f'no pack at {PREFIX}{folder}: none of its folders has {INDEX}; run tools/pack_images.py, '
        'or run it again if it did not finish'
    )


@register_backend('shard', prefixes='shard', force=True)
class ShardBackend(BaseStorageBackend):
    """Reads `shard://PACK/NAME`; what MMEngine's and mmpretrain's data sets ask of a backend."""

    def get(self, filepath: str) -> bytes:
        """Bytes of an image; errors as of `Pack.read`."""
        folder, _, name = str(filepath).removeprefix(PREFIX).rpartition('/')
        pack, inside = _pack_of(folder)
        return open_pack(pack).read(f'{inside}/{name}' if inside else name)

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Text of a member."""
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: str) -> bool:
        """Whether it is an image or a folder of a pack."""
        return self.isfile(filepath) or self.isdir(filepath)

    def isfile(self, filepath: str) -> bool:
        """Whether it is an image of a pack."""
        try:
            pack, name = _pack_of(str(filepath).removeprefix(PREFIX))
        except FileNotFoundError:
            return False
        return open_pack(pack).row(name) is not None

    def isdir(self, filepath: str) -> bool:
        """Whether there are images below it."""
        try:
            pack, name = _pack_of(str(filepath).removeprefix(PREFIX).rstrip('/'))
        except FileNotFoundError:
            return False
        return bool(open_pack(pack).below(name))

    def join_path(self, filepath: str, *filepaths: str) -> str:
        """Join with single slashes."""
        parts = [str(filepath).rstrip('/'), *(str(part).strip('/') for part in filepaths)]
        return '/'.join(part for part in parts if part)

    def list_dir_or_file(
        self,
        dir_path: str,
        list_dir: bool = True,
        list_file: bool = True,
        suffix: str | tuple[str, ...] | None = None,
        recursive: bool = False,
    ) -> Iterator[str]:
        """Paths relative to a folder, sorted, as MMEngine's LocalBackend."""
        pack, folder = _pack_of(str(dir_path).removeprefix(PREFIX).rstrip('/'))
        seen = set()
        for name in open_pack(pack).below(folder):
            *parents, _ = name.split('/')
            depths = range(1, len(parents) + 1) if recursive else range(1, 2) if parents else ()
            for parent in ('/'.join(parents[:depth]) for depth in depths):
                if list_dir and parent not in seen:
                    seen.add(parent)
                    yield parent
            if list_file and (recursive or not parents) and (not suffix or name.endswith(suffix)):
                yield name


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
                members.append((name, number, start, len(data), crc32(data)))
    shards = sorted({shard_name(member[1]) for member in members})
    _write_index(out, members, shards)
    return len(members)


def index_tars(folder: str | os.PathLike) -> int:
    """Index tar files that are there, each a folder named by its stem; the number of images.

    Raises:
        ValueError: no tar file, one that is damaged or compressed, or a name given twice.
    """
    folder = Path(folder)
    tars = sorted(folder.glob('*.tar'))
    members: list[Member] = []
    for number, file in enumerate(tars):
        try:
            with tarfile.open(file, 'r:') as tar, open(file, 'rb') as raw:
                for info in tar:
                    if info.isfile():
                        raw.seek(info.offset_data)
                        data = raw.read(info.size)
                        if len(data) != info.size:
                            raise tarfile.ReadError(f'{info.name} is cut short')
                        name = checked_name(f'{file.stem}/{info.name}')
                        place = info.offset_data, info.size, crc32(data)
                        members.append((name, number, *place))
        except tarfile.TarError as error:
            raise ValueError(f'{file} is damaged or compressed: {error}') from error
    _write_index(folder, members, [file.name for file in tars])
    return len(members)


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
