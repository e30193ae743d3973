"""Images in a few archives, read by offset as paths `shard://PACK/NAME`.

A pack is a folder of tar or zip files and `index.npz`: where each image lies (`packing.py` writes
it). MMEngine's file functions, and with them all data sets and `LoadCheckedImage`, take such paths
like any other.
"""

import errno
import os
import zlib
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from mmengine.fileio import BaseStorageBackend, register_backend

INDEX = 'index.npz'
FORMAT = 2  # 1: all members stored as they are, no column of sizes after inflating
AS_IT_IS = -1  # in place of a size after inflating
PREFIX = 'shard://'


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
            version = int(index['format']) if 'format' in index else None
            if version not in (1, FORMAT):
                raise ValueError(
                    f'{file} is of format {version}, expected 1 or {FORMAT}: pack again'
                )
            self.names, self.places = index['names'], index['places']
            shards = index['shards'].tolist()
            sizes = index['sizes'].tolist()
        if version == 1:
            self.places = np.insert(self.places, 4, AS_IT_IS, axis=1)
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
        shard, offset, length, checksum, inflated = self.places[row].tolist()
        if shard not in self.files:
            self.files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        # Not seek and read: forked workers share the position in a file.
        data = os.pread(self.files[shard], length, offset)
        whole = len(data) == length
        if whole and inflated != AS_IT_IS:
            data = _inflate(data, inflated)
        if not whole or data is None or zlib.crc32(data) != checksum:
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


def _inflate(data: bytes, size: int) -> bytes | None:
    """Inflate raw deflate data; None if it is damaged or does not give `size` bytes.

    It stops a byte after `size`: a few bytes can stand for gigabytes.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        image = inflater.decompress(data, size + 1)  # 0 would be no limit
    except zlib.error:
        return None
    return image if inflater.eof and len(image) == size else None


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
