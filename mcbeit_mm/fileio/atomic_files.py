"""Atomic file writes: a path holds its old or its new content, whatever stops the writer."""

import errno
import os
import re
import shutil
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, over quota, ulimit -f
LEFTOVER = re.compile(r'\..+\.tmp-(\d+)')


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Replace the content of a file in one step that survives a power cut.

    The data goes to `.NAME.tmp-PID` in the same folder, which is synced and renamed. If anything
    fails, the temporary file is removed and the old content stays.

    Raises:
        OSError: the system's error; if the disk is full, with the number of bytes needed and free.
    """
    path = Path(os.path.realpath(path))  # replace the target of a link, not the link
    data = data.encode() if isinstance(data, str) else data
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
    """Remove temporary files whose writers were killed; return their paths."""
    removed = []
    for path in Path(folder).glob('.*.tmp-*'):
        match = LEFTOVER.fullmatch(path.name)
        if match and not _is_other_process(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


@register_backend('atomic')
class AtomicLocalBackend(LocalBackend):
    """MMEngine's local file backend with atomic writes: `backend_args=dict(backend='atomic')`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes, creating missing folders."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text, creating missing folders."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system supports it
            raise
    finally:
        os.close(handle)


def _is_other_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        return True
    return pid != os.getpid()
