"""Pinned files: `PATH#sha256=HEX` names the file and what must be in it."""

import hashlib
import os
import re
from pathlib import Path

MARK = '#sha256='
HEX = re.compile('[0-9a-f]{64}')


def split_pin(text: str | os.PathLike) -> tuple[str, str | None]:
    """Split `PATH#sha256=HEX` (or `URL#sha256=HEX`) into the path and the hash, if there is one.

    Raises:
        ValueError: what follows `#sha256=` is no hash, or another kind of `#sha...` is given.
    """
    text = os.fspath(text)
    path, mark, digest = text.partition(MARK)
    digest = digest.strip().lower()
    if mark and path and HEX.fullmatch(digest):
        return path, digest
    if mark or re.search(r'#sha\d*[=:]', text, re.IGNORECASE):
        raise ValueError(
            f'{text}: a pinned file is PATH{MARK}HEX with the 64 hexadecimal digits that '
            f'`sha256sum PATH` prints'
        )
    return text, None


def checked_path(text: str | os.PathLike) -> Path:
    """Return the path of `PATH` or `PATH#sha256=HEX`, in whose file the hash has been found.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the hash differs, or the pin is malformed or of a folder.
    """
    path, digest = split_pin(text)
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f'No file {file} (working directory: {Path.cwd()})')
    return check_pin(file, digest)


def check_pin(file: Path, digest: str | None) -> Path:
    """Return the file, whose SHA-256 must be `digest` unless that is None; else ValueError."""
    if digest is None:
        return file
    if file.is_dir():
        raise ValueError(f'{file} is a folder: only a file has a SHA-256; pin the file inside it')
    got = sha256_of(file)
    if got != digest:
        raise ValueError(
            f'{file} has the SHA-256 {got}, expected {digest}: it is another file or has been '
            f'changed. Get the one that was pinned, or if this one is wanted, pin {got}'
        )
    return file


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
