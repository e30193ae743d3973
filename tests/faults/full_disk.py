"""Fill the disk of a running training: it must exit cleanly, and resume once there is space."""

import errno
import os
import random
import resource
import shutil
import subprocess
import time
from pathlib import Path

import launcher
from compare import compare
from corruption import ask, checkpoints
from tiny_runs import TinyRun

SIZE = 64  # MiB of the small disk; a tiny checkpoint has less than one
SETUP_ERROR = 2  # exit code with a one-line error


def mount(folder: Path) -> bool:
    """Mount a small tmpfs on a folder; False if that is not permitted."""
    folder.mkdir(parents=True)
    command = ['mount', '-t', 'tmpfs', '-o', f'size={SIZE}m', 'tmpfs', str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def fill(folder: Path, left: int) -> Path:
    """Write a file until `left` bytes are free."""
    ballast = folder / 'ballast'
    with open(ballast, 'wb', buffering=0) as file:
        try:
            while True:
                stat = os.statvfs(folder)
                room = stat.f_bavail * stat.f_frsize - left
                if room <= 0 and left:
                    break
                file.write(bytes(min(max(room, 4096), 1 << 20)))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return ballast


def campaign(run: TinyRun, reference: Path, folder: Path, rng: random.Random) -> dict:
    """Fill the disk, to less than a checkpoint or completely, early and late in the run."""
    disk = folder / 'mounted'
    mounted = mount(disk)
    way = f'tmpfs of {SIZE} MiB' if mounted else 'RLIMIT_FSIZE (mounting is not permitted)'
    problems: list[str] = []
    cases = [(share, part) for share in ('less than a checkpoint', 'nothing') for part in range(3)]
    try:
        for number, (share, part) in enumerate(cases):
            at = rng.randrange(4, run.iters // 3) + part * (run.iters // 3)
            found = one(run, reference, disk, folder / f'{number}.log', share, at, mounted, rng)
            problems += [f'disk full ({way}), {share} left at {at}: {line}' for line in found]
    finally:
        if mounted:
            subprocess.run(['umount', '-l', str(disk)], check=True)
    return dict(way=way, runs=len(cases), problems=problems)


def one(
    run: TinyRun, reference: Path, disk: Path, log: Path, share: str, at: int, mounted: bool,
    rng: random.Random,
) -> list[str]:  # fmt: skip
    """Fill the disk at iteration `at`, check, resume and compare the run."""
    work = disk / 'work'
    shutil.rmtree(work, ignore_errors=True)
    running = launcher.start(run.config, work, log)
    while running.poll() is None and running.state.read()['done'] < at:
        time.sleep(0.001)
    size = checkpoints(reference)[-1].stat().st_size
    left = rng.randrange(4096, size - 4096) if share != 'nothing' else 0
    if mounted:
        fill(disk, left)
    else:
        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))
    code = running.wait()
    done = running.state.read()['done']
    running.clean_up()
    problems = []
    if code != SETUP_ERROR:
        line = (log.read_text(errors='replace').strip().splitlines() or ['no output'])[-1]
        problems.append(f'exit code {code}, expected {SETUP_ERROR} ({log}): {line[:300]}')
    if rest := [f.name for f in work.iterdir() if f.is_file() and 'tmp' in f.name]:
        problems.append(f'left behind: {rest}')
    found, said = ask(work)
    if found is None:
        return [*problems, f'no checkpoint to resume: {said}']
    if said.strip():
        problems.append(f'the last good checkpoint is not intact: {said.strip()}')
    (disk / 'ballast').unlink(missing_ok=True)
    running = launcher.start(run.config, work, log.with_suffix('.resumed.log'))
    code, begun = running.wait(), running.state.read()['begun']
    running.clean_up()
    if code:
        return [*problems, f'exit code {code} of the resumed run, {log}']
    if done - begun > run.interval:
        problems.append(f'{done - begun} iterations lost')
    return problems + compare(work, reference, run.iters)
