"""Detect damaged checkpoint files."""

import os
import zipfile
from pathlib import Path

from safetensors import safe_open
from torch.utils.serialization import config

from .inert_pickle import load_inert, reason

LOCAL_HEADER = b'PK\x03\x04'
PICKLE = b'\x80'  # torch.save before 1.6 and plain pickles
DOS_FOLDER = 0x10  # torch skips records with this attribute as folders


def damage(path: str | os.PathLike) -> str | None:
    """Describe what is wrong with a file; None if nothing is found.

    Verifies the CRC-32 of every record of a `torch.save` zip, which `torch.load` ignores, and that
    torch finds all records. For safetensors, checks only that header and file length agree. Pickles
    (`torch.save` before 1.6) have no checksum and pass.
    """
    path = Path(path)
    with path.open('rb') as file:
        start = file.read(4)
    try:
        if path.suffix == '.safetensors':
            with safe_open(path, framework='pt'):
                return None
        if start == LOCAL_HEADER or zipfile.is_zipfile(path):
            return _damage_of_zip(path)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the parsers raise almost anything
        return reason(error)
    return None if start.startswith(PICKLE) else f'not a checkpoint: it starts with {start!r}'


def _damage_of_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        if record := archive.testzip():
            return f'record {record} does not match its CRC-32'
        for record in archive.infolist():
            if record.external_attr & DOS_FOLDER:
                return f'record {record.filename} is marked as a folder'
    with config.patch('load.mmap', True):  # the tensors stay on disk
        load_inert(path)
    return None
