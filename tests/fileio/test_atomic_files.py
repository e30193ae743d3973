"""A file holds its old or its new content, whatever stops the writer."""

import errno
import os
import resource
import signal
import subprocess

import pytest
from mmengine import fileio

from mcbeit_mm.fileio.atomic_files import remove_leftovers, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A 64 KiB file system."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('needs the right to mount')
    yield place
    subprocess.run(['umount', str(place)], check=True)


def in_a_child(do) -> int:
    """Run a function in a forked process; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = do()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize('data', [b'\x00new', 'n\u00e9w'])
def test_writing_replaces_the_file_and_leaves_nothing_else(old, data):
    write_atomically(old, data)
    assert old.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert names(old.parent) == [old.name]


def test_data_is_synced_before_the_rename_and_the_folder_after_it(old, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        order.append(os.path.basename(os.readlink(f'/proc/self/fd/{handle}')))
        fsync(handle)

    def noted_replace(source, target):
        assert open(source, 'rb').read() == b'new'
        order.append('replace')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', noted_fsync)
    monkeypatch.setattr(os, 'replace', noted_replace)
    write_atomically(old, b'new')
    assert order == [f'.epoch_1.pth.tmp-{os.getpid()}', 'replace', old.parent.name]


@pytest.mark.parametrize('step', ['replace', 'fsync'])
@pytest.mark.parametrize('error', [OSError(errno.EIO, 'broken'), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_leaves_nothing_else(old, monkeypatch, step, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(old, b'new')
    assert old.read_bytes() == b'old' and names(old.parent) == [old.name]


def test_kill_before_the_rename(old):
    def die():
        os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(old, b'new')
        return 0

    assert in_a_child(die) == -signal.SIGKILL
    assert old.read_bytes() == b'old' and len(names(old.parent)) == 2
    removed = remove_leftovers(old.parent)
    assert [path.name.startswith('.epoch_1.pth.tmp-') for path in removed] == [True]
    assert names(old.parent) == [old.name]


def test_only_files_of_dead_writers_are_leftovers(old):
    kept = [f'.a.tmp-{os.getppid()}', '.a.tmp-x', 'a.tmp-1', 'epoch_1.pth']
    gone = [f'.a.tmp-{os.getpid()}', '.a.tmp-99999999']
    for name in kept + gone:
        (old.parent / name).touch()
    assert sorted(path.name for path in remove_leftovers(old.parent)) == sorted(gone)
    assert names(old.parent) == sorted(kept)


def test_full_disk_error_names_bytes_needed_and_free(small_disk):
    path = small_disk / 'a.pth'
    write_atomically(path, bytes(20_000))
    with pytest.raises(OSError, match=r'60,000 bytes needed, [1-4]\d,\d{3} free') as caught:
        write_atomically(path, bytes(60_000))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.stat().st_size == 20_000 and names(small_disk) == ['a.pth']


def test_file_size_limit(old):
    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomically(old, bytes(2000))
        except OSError as error:
            return int(error.errno == errno.EFBIG and '2,000 bytes needed' in str(error))

    assert in_a_child(write) == 1
    assert old.read_bytes() == b'old' and names(old.parent) == [old.name]


def test_links_stay_links(old):
    link = old.parent / 'latest.pth'
    link.symlink_to(old)
    write_atomically(link, b'new')
    assert link.is_symlink() and old.read_bytes() == b'new'


def test_mmengine_backend(tmp_path, monkeypatch):
    args = dict(backend='atomic')
    path = str(tmp_path / 'new_folder' / 'a')
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda *a: (replaced.append(a[1].name), replace(*a)))
    fileio.put(b'one', path, backend_args=args)
    assert fileio.get(path, backend_args=args) == b'one'
    fileio.put_text('caf\u00e9', path, backend_args=args)
    assert fileio.get_text(path, backend_args=args) == 'caf\u00e9'
    assert replaced == ['a', 'a']
