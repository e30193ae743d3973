"""Start tools/train.py in its own process group, watch and end it, and reap its processes.

Importing torch and the libraries takes 6 to 10 seconds. To save them, the parent imports
everything once and forks children that run the script by `runpy`, as `python` does. Forking is
safe only from a process with one thread, which is checked. All random numbers of a run follow from
its seed, and some runs are started by a new interpreter, so inherited state cannot hide a fault.
"""

import atexit
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from run_state import State
from tiny_runs import ROOT

HERE = Path(__file__).resolve().parent
TIMEOUT = 300.0  # seconds after which a run counts as hanging
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def prepare() -> None:
    """Import what training needs, become the reaper of orphans; call once before any fork."""
    import mmengine.runner  # noqa: F401
    import mmpretrain  # noqa: F401
    import torch

    import mcbeit_mm.config.launch
    import mcbeit_mm.config.preflight  # noqa: F401

    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass
class Running:
    """A started run; `state` is its progress."""

    pid: int
    state: State
    log: Path
    real: bool
    started: float = field(default_factory=time.monotonic)
    returncode: int | None = None  # as subprocess: negative for a signal

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int | None:
        """Return the exit code; None after the timeout."""
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return self.returncode

    def kill(self, number: int, group: bool = False) -> None:
        """Send a signal to the process or its group, if it still exists."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:
            pass

    def workers(self) -> list[int]:
        """Return the children of the process: loader workers."""
        try:
            text = Path(f'/proc/{self.pid}/task/{self.pid}/children').read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(word) for word in text.split()]

    def clean_up(self) -> int:
        """Kill and reap the rest of the group; return the number of processes."""
        self.kill(signal.SIGKILL, group=True)
        orphans = 0
        while True:
            try:
                os.waitpid(-self.pid, 0)
                orphans += 1
            except ChildProcessError:
                return orphans


def start(
    config: Path, work: Path, log: Path, *, fault: str = '', fsync: float = 0.0,
    options: tuple[str, ...] = (), real: bool = False,
) -> Running:  # fmt: skip
    """Run tools/train.py CONFIG --work-dir WORK --resume in a child of this process.

    Args:
        log: gets stdout and stderr.
        fault: see fault_points.
        fsync: extra seconds for every fsync.
        real: start a new interpreter instead of a fork.
    """
    arguments = [str(config), '--work-dir', str(work), '--resume', *options]
    state_file = log.with_suffix('.state')
    state = State(state_file)
    env = dict(
        os.environ, MCBEIT_FAULTS_STATE=str(state_file), OMP_NUM_THREADS='1',
        MCBEIT_FAULT=fault, MCBEIT_FAULTS_FSYNC=str(fsync or ''),
        PYTHONPATH=os.pathsep.join([str(ROOT), str(HERE)]),
    )  # fmt: skip
    script = str(ROOT / 'tools/train.py')
    if real:
        with open(log, 'ab') as out:
            process = subprocess.Popen(
                [sys.executable, script, *arguments], cwd=ROOT, env=env, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        process.returncode = 0  # this module waits for it, not Popen
        return Running(process.pid, state, log, real)
    if len(threads := os.listdir('/proc/self/task')) > 1:
        raise RuntimeError(f'forking needs a process with one thread, there are {len(threads)}')
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(script, arguments, env, log)
    return Running(pid, state, log, real)


def _child(script: str, arguments: list[str], env: dict[str, str], log: Path) -> None:
    """Do what `python script arguments` does, in a forked process; never return."""
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(ROOT)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name='__main__')
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()  # as any interpreter does: loaders end their workers
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
