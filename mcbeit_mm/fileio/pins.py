"""Pinned files: `PATH#sha256=HEX` is a path with the SHA-256 that its file must have."""

import hashlib
import os
import re
from pathlib import Path

MARK = '#sha256='
HEX = re.compile('[0-9a-f]{64}')


def split_pin(text: str | os.PathLike) -> tuple[str, str | None]:
    """Split `PATH#sha256=HEX` (or `URL#sha256=HEX`) into path and hash, None without a pin.

    Raises:
        ValueError: the pin is malformed or uses another hash function.
    """
    text = os.fspath(text)
    path, mark, digest = text.partition(MARK)
    digest = digest.strip().lower()
    if mark and path and HEX.fullmatch(digest):
        return path, digest
    if mark or re.search(r'#sha\d*[=:]', text, re.IGNORECASE):
        raise ValueError(
            f'{text}: expected PATH{MARK}HEX with the 64 hexadecimal digits that `sha256sum PATH` '
            'prints'
        )
    return text, None


def check_pin(file: Path, digest: str | None) -> Path:
    """Return the file; ValueError if its SHA-256 is not `digest`. None accepts any file."""
    if digest is None:
        return file
    if file.is_dir():
        raise ValueError(f'{file} is a folder, only files can be pinned: pin the file inside it')
    got = sha256_of(file)
    if got != digest:
        raise ValueError(
            f'{file} has the SHA-256 {got}, expected {digest}: it is another file or has been '
            f'changed. Restore the pinned file, or pin {got} to accept this one'
        )
    return file


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
