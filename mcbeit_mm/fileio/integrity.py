"""Tell a damaged checkpoint from a good one by what its file says about itself."""

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import torch

CHUNK = 2**20
LOCAL_HEADER = b'PK\x03\x04'
PICKLE = b'\x80'  # torch.save before 1.6 and plain pickles
DOS_FOLDER = 0x10  # attribute by which torch's reader takes a record for a folder and skips it
SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


def damage(path: str | os.PathLike) -> str | None:
    """Say what is wrong with a file, or None if nothing can be found.

    Of a zip of `torch.save` every byte that loading uses is checked: the CRC-32 of each record
    (torch itself does not look at them) and the index. Of safetensors, only that header and length
    agree; of the format before torch 1.6 and other pickles nothing can be checked without
    unpickling. Of a folder, the checkpoints in it are checked.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob('*') if file.suffix in SUFFIXES)
        found = (f'{file.name}: {reason}' for file in files if (reason := damage(file)))
        return next(found, None) if files else 'the folder holds no checkpoint'
    size = path.stat().st_size
    if size == 0:
        return 'the file is empty'
    with open(path, 'rb') as file:
        start = file.read(8)
    if start.startswith(LOCAL_HEADER) or zipfile.is_zipfile(path):
        return _damage_of_zip(path)
    if path.suffix == '.safetensors':
        return _damage_of_safetensors(path, size)
    if start.startswith(PICKLE):
        return None
    return f'the file starts with {start!r}, which no checkpoint does'


def _damage_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            for record in records:
                if record.external_attr & DOS_FOLDER:
                    return f'record {record.filename} is marked as a folder'
                _read_through(archive, record)
        names = [record.filename.partition('/')[2] for record in records]
        seen = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except (
        EOFError,
        NotImplementedError,  # another kind of compression, version or encryption
        OSError,
        RuntimeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        return f'{type(error).__name__}: {error}'
    if 'data.pkl' not in names:
        return 'record data.pkl is missing'
    if sorted(seen) != sorted(names):
        return f'torch finds {len(seen)} of {len(names)} records'
    return None


def _read_through(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Read a record to its end, where zipfile compares the CRC-32."""
    with archive.open(record) as file:
        while file.read(CHUNK):
            pass


def _damage_of_safetensors(path: Path, size: int) -> str | None:
    """Compare the length with the header: its length (8 bytes), JSON, then the tensors."""
    with open(path, 'rb') as file:
        try:
            (length,) = struct.unpack('<Q', file.read(8))
            header = json.loads(file.read(min(length, size)))
            ends = [v['data_offsets'][1] for k, v in header.items() if k != '__metadata__']
            expected = 8 + length + max(ends, default=0)
        except (struct.error, ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            return f'the header cannot be read: {error}'
    return None if size == expected else f'{size} bytes, the header announces {expected}'
