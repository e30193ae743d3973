"""Images in a few archives, read at random as paths `shard://PACK/NAME`.

A pack is a folder of tar or zip files with an `index.npz`, written by `packing.py`. MMEngine's file
functions accept such paths, and with them all data sets and `LoadCheckedImage`.
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
FORMAT = 2  # 1: no column of inflated sizes
STORED = -1  # inflated size of a member that is not compressed
PREFIX = 'shard://'


def read_member(file: int, offset: int, length: int, checksum: int, inflated: int) -> bytes | None:
    """Read a member of an archive by file descriptor; None if it does not match its CRC-32.

    Unless `inflated` is STORED, the member is compressed by deflate. pread and zlib, not zipfile:
    threads and forked workers share no file position, and no process keeps a ZipInfo per image
    (0.7 GB for ImageNet).
    """
    data = os.pread(file, length, offset)
    if len(data) != length:
        return None
    if inflated != STORED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than stated at most: a few bytes can inflate to gigabytes.
            data = inflater.decompress(data, inflated + 1)
        except zlib.error:
            return None
        if not inflater.eof or len(data) != inflated:
            return None
    return data if zlib.crc32(data) == checksum else None


class Pack:
    """An opened pack: `names` is sorted, `places` has the arguments of `read_member` by row.

    Raises:
        FileNotFoundError: no index (packing did not finish), or a missing shard.
        ValueError: an index of another format, or a shard of another size than indexed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        file = self.folder / INDEX
        if not file.is_file():
            raise FileNotFoundError(
                f'{self.folder} has no {INDEX}: not a pack, or packing did not finish; run '
                'tools/pack_images.py'
            )
        with np.load(file, allow_pickle=False) as index:
            version = int(index['format']) if 'format' in index else None
            if version not in (1, FORMAT):
                raise ValueError(f'{file}: format {version}, expected 1 or {FORMAT}; pack again')
            self.names, self.places = index['names'], index['places']
            self.shards = [self.folder / os.fsdecode(name) for name in index['shards'].tolist()]
            sizes = index['sizes'].tolist()
        if version == 1:
            self.places = np.insert(self.places, 4, STORED, axis=1)
        for shard, size in zip(self.shards, sizes, strict=True):
            if not shard.is_file():
                raise FileNotFoundError(f'{shard} is missing, but listed in {file}')
            if (found := shard.stat().st_size) != size:
                raise ValueError(
                    f'{shard} has {found} bytes, {file} lists {size}: copy or pack again'
                )
        self.files: dict[int, int] = {}

    def read(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            FileNotFoundError: no such member.
            OSError: the bytes do not match the index.
        """
        row = self.row(name)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, f'no such image in {self.folder}', name)
        shard, *place = self.places[row].tolist()
        if shard not in self.files:
            self.files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        data = read_member(self.files[shard], *place)
        if data is None:
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


open_pack = cache(Pack)


@lru_cache(maxsize=4096)  # the folders of a data set
def _find_pack(folder: str) -> tuple[str, str]:
    """Split a folder path into the pack's path and the folder's name within the pack."""
    path = Path(folder)
    for pack in (path, *path.parents):
        if (pack / INDEX).is_file():
            name = path.relative_to(pack).as_posix()
            return str(pack), '' if name == '.' else name
    raise FileNotFoundError(
        f'no pack at {PREFIX}{folder}: no {INDEX} in it or its parents; run tools/pack_images.py '
        '(again if it did not finish)'
    )


@register_backend('shard', prefixes='shard', force=True)
class ShardBackend(BaseStorageBackend):
    """Reads `shard://PACK/NAME` for MMEngine's file functions."""

    def get(self, filepath: str) -> bytes:
        """Return the bytes of an image; raises as `Pack.read`."""
        folder, _, name = str(filepath).removeprefix(PREFIX).rpartition('/')
        pack, inside = _find_pack(folder)
        return open_pack(pack).read(f'{inside}/{name}' if inside else name)

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Return the text of a member."""
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: str) -> bool:
        """Whether the path is an image or a folder of a pack."""
        return self.isfile(filepath) or self.isdir(filepath)

    def isfile(self, filepath: str) -> bool:
        """Whether the path is an image of a pack."""
        try:
            pack, name = _find_pack(str(filepath).removeprefix(PREFIX))
        except FileNotFoundError:
            return False
        return open_pack(pack).row(name) is not None

    def isdir(self, filepath: str) -> bool:
        """Whether there are images below the path."""
        try:
            pack, name = _find_pack(str(filepath).removeprefix(PREFIX).rstrip('/'))
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
        """Yield paths relative to a folder, sorted, as MMEngine's LocalBackend."""
        pack, folder = _find_pack(str(dir_path).removeprefix(PREFIX).rstrip('/'))
        seen = set()
        for name in open_pack(pack).below(folder):
            parents = [name[:end] for end, letter in enumerate(name) if letter == '/']
            for parent in parents if recursive else parents[:1]:
                if list_dir and parent not in seen:
                    seen.add(parent)
                    yield parent
            if list_file and (recursive or not parents) and (not suffix or name.endswith(suffix)):
                yield name
