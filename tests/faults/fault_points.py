"""Report progress from within the training process, and fail on request.

Configs import it by `custom_imports`; without the environment variables it does nothing.

MCBEIT_FAULTS_STATE: a file for `run_state.State`.
MCBEIT_FAULT: KIND@PLACE:N. PLACE is `iter` (after N iterations) or `file` (before the N-th
operation on checkpoint files in this process: open for writing, rename, remove; Python raises an
audit event for each, so every step of saving can be hit, whatever code does it). KIND is abort,
exception, kill or torn: a rename after which the file has only part of its bytes.
"""

import os
import random
import signal
import sys
import time

from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from run_state import END, START, TRAINING, VALIDATION, WRITING, State


class Injected(Exception):
    """An injected exception."""


def fail(kind: str, file: str | None = None) -> None:
    if kind == 'exception':
        raise Injected('injected by the fault campaign')
    if kind == 'torn':
        size = os.path.getsize(file)
        os.truncate(file, random.Random(size).randrange(size))
    if kind == 'abort':
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class FilePoints:
    """An audit hook that counts operations on checkpoints and fails at a given one."""

    def __init__(self, state: State, kind: str, number: int):
        self.state, self.kind, self.number, self.pid = state, kind, number, os.getpid()

    def __call__(self, event: str, args: tuple) -> None:
        if event not in ('open', 'os.rename', 'os.remove') or os.getpid() != self.pid:
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ''
        name = os.path.basename(path)
        if '.pth' not in name and 'last_checkpoint' not in name:
            return
        # The event of `open` has (path, mode, flags); os.open has no mode.
        if event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        state = self.state.read()
        if state['phase'] == START:
            return  # stale files
        self.state.write(operations=state['operations'] + 1)
        if state['operations'] + 1 == self.number:
            fail('kill' if self.kind == 'torn' and event != 'os.rename' else self.kind, path)


def _is_due(hook: Hook, runner) -> bool:
    return isinstance(hook, CheckpointHook) and (
        hook.every_n_train_iters(runner, hook.interval) or hook.is_last_train_iter(runner)
    )


@HOOKS.register_module()
class WhereHook(Hook):
    """Records the phase of the run; one comes just before the checkpoint hook, one last."""

    def __init__(self, point: str):
        self.first = point == 'before_saving'
        self.state = State(os.environ['MCBEIT_FAULTS_STATE']) if ACTIVE else None

    def _note(self, **values: int) -> None:
        if self.state:
            self.state.write(**values)

    def before_train(self, runner) -> None:
        if self.first:
            self._note(phase=TRAINING, begun=runner.iter, done=runner.iter)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._note(phase=TRAINING)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.first:
            self._note(phase=TRAINING)
            return
        self._note(done=runner.iter + 1)
        if ACTIVE and PLACE == 'iter' and runner.iter + 1 >= NUMBER:
            fail(KIND)
        if any(_is_due(hook, runner) for hook in runner.hooks):
            self._note(phase=WRITING)

    def before_val_epoch(self, runner) -> None:
        self._note(phase=VALIDATION)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._note(phase=TRAINING)

    def after_train(self, runner) -> None:
        if not self.first:
            self._note(phase=END)


@HOOKS.register_module()
class MeasuringHook(Hook):
    """Records that k-NN is being measured; comes before KNNHook."""

    priority = 'HIGH'

    def after_train_epoch(self, runner) -> None:
        if ACTIVE:
            State(os.environ['MCBEIT_FAULTS_STATE']).write(phase=VALIDATION)


def slow_down(seconds: float) -> None:
    """Make every fsync slow, so that saving can be hit from outside."""
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(seconds)
        fsync(descriptor)

    os.fsync = slow_fsync


ACTIVE = 'MCBEIT_FAULTS_STATE' in os.environ
KIND, PLACE, NUMBER = '', '', 0
if os.environ.get('MCBEIT_FAULT'):
    KIND, _, rest = os.environ['MCBEIT_FAULT'].partition('@')
    PLACE, _, number = rest.partition(':')
    NUMBER = int(number)
if ACTIVE:
    sys.addaudithook(
        FilePoints(State(os.environ['MCBEIT_FAULTS_STATE']), KIND, NUMBER if PLACE == 'file' else 0)
    )
if os.environ.get('MCBEIT_FAULTS_FSYNC'):
    slow_down(float(os.environ['MCBEIT_FAULTS_FSYNC']))
