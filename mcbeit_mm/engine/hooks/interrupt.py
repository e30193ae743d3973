"""Save and exit on a signal from the scheduler or the user."""

import os
import signal
import threading
from collections.abc import Callable
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
# From schedulers and torchrun, from Ctrl-C, and as in `sbatch --signal`.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@HOOKS.register_module()
class InterruptHook(Hook):
    """On SIGTERM, SIGINT or SIGUSR1, save after the current iteration and exit with status 75.

    All ranks exit after the same iteration, whichever of them received the signal; a validation is
    finished first. A second SIGINT interrupts at once. The status is also written to the file
    named by MCBEIT_INTERRUPTED, since torchrun exits with 1 whatever its processes return.

    Raises:
        SetupError: the run's CheckpointHook cannot save within an epoch.
    """

    priority = 'LOWEST'  # after logging and the regular checkpoint

    _saver: CheckpointHook | None = None  # None outside of training
    _group = None

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers."""
        self._saver = _find_saver(runner)
        if self._saver is None:  # without checkpoints, keep the default handlers
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
                _shield_workers(each.dataloader)
        self._received, self._owner = 0, os.getpid()
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handlers."""
        if self._saver:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        self._saver = None

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and exit if any rank received a signal."""
        if self._saver and (number := self._max_over_ranks(self._received)):
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
        for other in (signal.SIGTERM, signal.SIGUSR1):  # from the launcher: keep the exit status
            signal.signal(other, signal.SIG_IGN)
        if path := os.environ.get('MCBEIT_INTERRUPTED'):
            Path(path).write_text(f'{INTERRUPTED}\n')
        runner.logger.warning(
            f'{signal.Signals(number).name}: saved, exiting with status {INTERRUPTED}; rerun the '
            'same command with --resume to continue'
        )
        raise SystemExit(INTERRUPTED)


def _find_saver(runner: Runner) -> CheckpointHook | None:
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


def _shield_workers(dataloader: DataLoader) -> None:
    """Let worker processes survive signals to the whole process group."""
    inner = dataloader.worker_init_fn
    if getattr(inner, 'func', None) is not _init_worker:
        dataloader.worker_init_fn = partial(_init_worker, inner=inner)


def _init_worker(worker_id: int, inner: Callable[[int], None] | None) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # multiprocessing ends workers by SIGTERM, so only the parent's may count. Handlers do not learn
    # the sender, but a thread that waits for the blocked signal does.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    if inner is not None:
        inner(worker_id)


def _exit_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
