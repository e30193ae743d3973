"""Save and exit on a signal from the scheduler or the user."""

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

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: retry, with --resume


@HOOKS.register_module()
class InterruptHook(Hook):
    """On a signal, save after the current iteration and exit with status 75.

    All ranks exit after the same iteration, whichever of them received the signal. A second SIGINT
    interrupts at once. The status is also written to the file named by MCBEIT_INTERRUPTED, since
    torchrun exits with 1 whatever its processes return.

    Args:
        signals: SIGTERM from schedulers and torchrun, SIGINT from Ctrl-C, SIGUSR1 as in
            `sbatch --signal`.

    Raises:
        SetupError: the run's CheckpointHook cannot save within an epoch.
    """

    priority = 'LOWEST'  # after logging and the regular checkpoint

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGINT', 'SIGUSR1')):
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f'expected signal names like SIGTERM, got {", ".join(unknown)}')
        self.signals = [signal.Signals[name] for name in signals]
        self._received = 0
        self._saver: CheckpointHook | None = None  # None outside of training
        self._previous: dict[signal.Signals, Any] = {}
        self._group = None
        self._common_batches = 0

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers."""
        self._saver = _saver(runner)
        if self._saver is None:  # without checkpoints a signal ends the run as any program
            return
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and not isinstance(loop, ResumableEpochLoop):
            raise SetupError(
                f'InterruptHook saves within an epoch, where {type(loop).__name__} cannot resume: '
                'set train_cfg.type to ResumableEpochLoop, or remove default_hooks.interrupt'
            )
        if dist.is_initialized():  # gloo, so that no rank waits for its GPU
            self._group = dist.new_group(backend='gloo')
        for each in (loop, runner.val_loop):
            if isinstance(getattr(each, 'dataloader', None), DataLoader):
                _shield_workers(each.dataloader, self.signals)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('InterruptHook is inactive: only a main thread gets signals')
            return
        self._received, self._owner = 0, os.getpid()
        self._previous = {number: signal.signal(number, self._note) for number in self.signals}

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._saver, self._previous = None, {}

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and exit if any rank received a signal."""
        if self._saver and (number := self._max_over_ranks(self._received)):
            self._exit(runner, number)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find the number of batches that all ranks have: samplers may split unevenly."""
        if self._saver:
            self._common_batches = -self._max_over_ranks(-len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save and exit within a validation, which is repeated after resuming."""
        if self._saver and batch_idx < self._common_batches:
            if number := self._max_over_ranks(self._received):
                self._exit(runner, number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a data loader worker that inherited the handler; its parent decides
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = number
        # Not through the logger: the signal may have interrupted its writing.
        again = '; Ctrl-C again to stop at once' if number == signal.SIGINT else ''
        name = signal.Signals(number).name
        os.write(2, f'{name}: saving after this iteration{again}\n'.encode())

    def _max_over_ranks(self, value: int) -> int:
        if self._group is None:
            return value
        tensor = torch.tensor(value)
        try:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise RuntimeError(
                'another rank has exited, see its messages; nothing is saved now, --resume '
                'continues from the last checkpoint'
            ) from error
        return int(tensor)

    def _exit(self, runner: Runner, number: int) -> None:
        self._saver.save_now(runner)
        self._max_over_ranks(0)  # once a rank exits, the launcher kills those still saving
        for other in self._previous:
            if other != signal.SIGINT:  # from the launcher, which would change the exit status
                signal.signal(other, signal.SIG_IGN)
        if path := os.environ.get('MCBEIT_INTERRUPTED'):
            Path(path).write_text(f'{INTERRUPTED}\n')
        runner.logger.warning(
            f'{signal.Signals(number).name}: saved, exiting with status {INTERRUPTED}; rerun the '
            'same command with --resume to continue'
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
        'InterruptHook needs SafeCheckpointHook: set default_hooks.checkpoint.type to it, or '
        'remove default_hooks.interrupt'
    )


def _shield_workers(dataloader: DataLoader, signals: Sequence[signal.Signals]) -> None:
    """Let worker processes survive signals to the whole process group."""
    inner = dataloader.worker_init_fn
    if getattr(inner, 'func', None) is not _init_worker:
        dataloader.worker_init_fn = partial(_init_worker, signals=signals, inner=inner)


def _init_worker(
    worker_id: int, signals: Sequence[signal.Signals], inner: Callable[[int], None] | None
) -> None:
    for number in set(signals) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    # DataLoader ends stuck workers by SIGTERM, so only that of the parent must count. The sender is
    # known to a thread that waits for the blocked signal, not to a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    if inner is not None:
        inner(worker_id)


def _exit_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
