"""Save and leave when the scheduler or the user asks for it."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ...errors import SetupError
from ..loops import ResumableEpochLoop

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again, here with --resume


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ends the run after the current iteration when a signal comes: saved, with exit status 75.

    All ranks end after the same iteration, whichever of them got the signal. A second SIGINT
    interrupts at once. If the environment names a file by MCBEIT_INTERRUPTED, the status is
    written there too: torchrun ends with 1 whatever its processes end with.

    Args:
        signals: SIGTERM of schedulers and torchrun, SIGINT of Ctrl-C, SIGUSR1 as in
            `sbatch --signal`.

    Raises:
        SetupError: the run's CheckpointHook cannot save in the middle of an epoch.
    """

    priority = 'LOWEST'  # the iteration is logged and its regular checkpoint written

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGINT', 'SIGUSR1')):
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f'signals have names like SIGTERM, got {", ".join(unknown)}')
        self.signals = [signal.Signals[name] for name in signals]
        self._received = 0
        self._saver: CheckpointHook | None = None  # None outside of training
        self._previous: dict[signal.Signals, Any] = {}
        self._group = None
        self._common_batches = 0

    def before_train(self, runner: Runner) -> None:
        """Catch the signals from now on."""
        self._saver = _saver(runner)
        if self._saver is None:  # a run that saves nothing ends as any program does
            return
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and not isinstance(loop, ResumableEpochLoop):
            raise SetupError(
                f'InterruptHook saves within an epoch, where {type(loop).__name__} cannot go on: '
                'set train_cfg.type to ResumableEpochLoop, or leave interrupt out of default_hooks'
            )
        if dist.is_initialized():  # over the CPU, so that no rank waits for its GPU
            self._group = dist.new_group(backend='gloo')
        loops = (runner.train_loop, runner.val_loop)
        for loop in loops:
            if isinstance(getattr(loop, 'dataloader', None), DataLoader):
                _spare_workers(loop.dataloader, self.signals)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('InterruptHook catches no signals: only a main thread can')
            return
        self._received, self._owner = 0, os.getpid()
        self._previous = {number: signal.signal(number, self._note) for number in self.signals}

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._saver, self._previous = None, {}

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and leave if any rank was asked to."""
        if self._saver and (number := self._agree(self._received)):
            self._leave(runner, number)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out how many batches all ranks have: samplers may give them unequal shares."""
        if self._saver:
            self._common_batches = -self._agree(-len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save and leave in a validation, which is done again after resuming."""
        if self._saver and batch_idx < self._common_batches:
            if number := self._agree(self._received):
                self._leave(runner, number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a worker of some loader inherited the handler; its parent decides
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = number
        # Not by the logger: the signal may have come in the middle of its writing.
        again = '; Ctrl-C again to stop at once' if number == signal.SIGINT else ''
        name = signal.Signals(number).name
        os.write(2, f'{name}: saving after this iteration{again}\n'.encode())

    def _agree(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        if self._group is None:
            return value
        tensor = torch.tensor(value)
        try:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise RuntimeError(
                'another rank has ended, its own messages say why; nothing is saved now, --resume '
                'goes on from the last checkpoint'
            ) from error
        return int(tensor)

    def _leave(self, runner: Runner, number: int) -> None:
        self._saver.save_now(runner)
        self._agree(0)  # a rank that ends makes the launcher end the others: they are done now
        for other in self._previous:
            if other != signal.SIGINT:  # the launcher's; they would spoil the exit status
                signal.signal(other, signal.SIG_IGN)
        if path := os.environ.get('MCBEIT_INTERRUPTED'):
            Path(path).write_text(f'{INTERRUPTED}\n')
        runner.logger.warning(
            f'{signal.Signals(number).name}: saved, leaving with status {INTERRUPTED}; go on by '
            'the same command with --resume'
        )
        raise SystemExit(INTERRUPTED)


def _saver(runner: Runner) -> CheckpointHook | None:
    savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for hook in savers:
        if hasattr(hook, 'save_now'):
            return hook
    if not savers:
        return None
    raise SetupError(
        'InterruptHook saves by SafeCheckpointHook: set default_hooks.checkpoint.type to it, or '
        'leave interrupt out of default_hooks'
    )


def _spare_workers(dataloader: DataLoader, signals: Sequence[signal.Signals]) -> None:
    """Let worker processes survive signals that go to the whole process group."""
    inner = dataloader.worker_init_fn
    if getattr(inner, 'func', None) is not _init_worker:
        dataloader.worker_init_fn = partial(_init_worker, signals=signals, inner=inner)


def _init_worker(
    worker_id: int, signals: Sequence[signal.Signals], inner: Callable[[int], None] | None
) -> None:
    for number in set(signals) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    # DataLoader ends stuck workers by SIGTERM, so that one must be told by its sender, which only
    # a waiting thread can.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if inner is not None:
        inner(worker_id)


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
