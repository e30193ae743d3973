"""Files that are there completely or not at all, whatever stops the writer."""

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, ulimit -f
LEFTOVER = re.compile(r'\..+\.tmp-(\d+)')


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file so that the path shows the old content or the new one, also after a power cut.

    The data goes to a temporary sibling `.NAME.tmp-PID`, which takes the place of the old file
    once it is on the disk. On any failure the sibling is removed and the old file stays.

    Raises:
        OSError: as the system raised it; of a full disk it says how many bytes are missing.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    if isinstance(data, str):
        data = data.encode()
    temporary = path.with_name(f'.{path.name}.tmp-{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            free = shutil.disk_usage(path.parent).free
            sizes = f'{memoryview(data).nbytes:,} bytes needed, {free:,} free'
            raise OSError(error.errno, f'{error.strerror} ({sizes})', str(path)) from error
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: str | os.PathLike) -> list[Path]:
    """Remove the temporary files of writers that were killed, and return their paths."""
    removed = []
    for path in Path(folder).glob('.*.tmp-*'):
        found = LEFTOVER.fullmatch(path.name)
        if found and not _is_another_process(int(found[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


@register_backend('atomic')
class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, with `write_atomically` for what it writes.

    Any config can have it by `backend_args=dict(backend='atomic')`.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; folders are made."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text; folders are made."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """Bring the new name of a file to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(handle)


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    with suppress(PermissionError):  # it lives, but is somebody else's
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
