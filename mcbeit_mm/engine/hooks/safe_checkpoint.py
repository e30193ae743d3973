"""Checkpoints that survive crashes, full disks and signals."""

import os.path as osp
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather, get_world_size, is_main_process, master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...errors import SetupError
from ...fileio.atomic_files import FULL, remove_leftovers, write_atomically
from ..experiment import run_facts
from ..loops import VALIDATED
from ..rank_state import collect, restore
from ..resume import move_position
from ..sharding import consolidate

INTERRUPTED = 'interrupted_iter_{}.pth'


class _RemovesLater:
    """A file backend that postpones removals.

    MMEngine removes old checkpoints before it writes the new one.
    """

    def __init__(self, backend: object):
        self._backend, self._outdated = backend, []

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        if path not in self._outdated and self.isfile(path):
            self._outdated.append(path)

    def remove_now(self) -> None:
        while self._outdated:
            self._backend.remove(self._outdated.pop(0))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, same arguments, for runs that may be stopped at any moment.

    Local files are written atomically, `last_checkpoint` follows the file it names, and what
    `max_keep_ckpts` or a better `save_best` replaces is removed last. Checkpoints also hold
    `rank_states` (see `rank_state`) and meta['run'] (see `experiment.run_facts`). Remote paths
    such as s3://... keep MMEngine's backend.

    Raises:
        SetupError: the disk is full; names the last good checkpoint.
    """

    _rank_states: list | None = None  # to be saved, or loaded and to be restored
    _saved_iter: int | None = None  # iterations done at the last save
    _validating = False

    def before_train(self, runner: Runner) -> None:
        """Choose the backend, clean up after killed writers, restore the state of this rank."""
        if self.file_client_args is not None:
            raise SetupError('SafeCheckpointHook takes backend_args, not the old file_client_args')
        _check_shared_work_dir(runner)
        place = str(self.out_dir or runner.work_dir)
        if isinstance(get_file_backend(place, backend_args=self.backend_args), LocalBackend):
            self.backend_args = dict(backend='atomic')
        super().before_train(runner)
        self.file_backend = _RemovesLater(self.file_backend)
        if is_main_process():
            for folder in {runner.work_dir, str(self.out_dir)}:
                for path in remove_leftovers(folder):
                    runner.logger.info(f'removed incomplete file {path}')
        if self._rank_states is not None and runner.iter:  # else only weights were loaded
            restore(runner, self._rank_states)
        self._rank_states = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what resuming needs."""
        checkpoint['meta'].update(run=_facts(runner), saved_at=time.time())
        if self._rank_states is not None:
            checkpoint['rank_states'] = self._rank_states

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep `rank_states` until the run is set up; adapt the position to the batch size.

        Accumulated gradients of another batch size are dropped.
        """
        states, meta = checkpoint.pop('rank_states', None), checkpoint.get('meta') or {}
        if 'iter' not in meta:
            return
        place = meta['iter']
        move_position(meta, _facts(runner))
        if states is not None and meta['iter'] != place:
            runner.logger.warning(
                'dropped the accumulated gradients in the checkpoint: the batch size has changed'
            )
            states = None
        self._rank_states = states

    def before_val_epoch(self, runner: Runner) -> None:
        """Remember that the loop's counters already include the iteration."""
        self._validating = True

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint; MMEngine then saves the regular one again."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)
        self._validating = False

    def save_now(self, runner: Runner) -> str:
        """Save a checkpoint to resume exactly here, and return its path.

        Call it on all ranks, at the end of an `after_train_iter` or `after_val_iter`. The next
        checkpoint replaces the file.
        """
        done = runner.iter + (not self._validating)
        if self._saved_iter == done and self.save_optimizer and self.save_param_scheduler:
            return self.last_ckpt
        meta = dict(epoch=runner.epoch, iter=done)
        with self._own_weights(runner):
            self._write(runner, INTERRUPTED.format(done), meta, complete=True)
        return self.last_ckpt

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = ''
        if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._write(runner, self.filename_tmpl.format(step), meta)
        self._remove(outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._full_disk_explained(runner):
            super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()

    def _write(self, runner: Runner, name: str, meta: dict, complete: bool = False) -> None:
        """Write a checkpoint, then last_checkpoint, then remove older interrupted ones."""
        save_optimizer = self.save_optimizer or complete
        if save_optimizer:
            consolidate(runner)
            self._rank_states = collect(runner)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        with self._full_disk_explained(runner):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=save_optimizer,
                save_param_scheduler=self.save_param_scheduler or complete,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_atomically(osp.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        self._rank_states = None
        self._saved_iter = meta['iter']
        files = self.file_backend.list_dir_or_file(self.out_dir, list_dir=False)
        self._remove(*(f for f in files if Path(f).match(INTERRUPTED.format('*')) and f != name))

    @master_only
    def _remove(self, *names: str) -> None:
        for name in filter(None, names):
            self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))
        self.file_backend.remove_now()

    @contextmanager
    def _own_weights(self, runner: Runner) -> Iterator[None]:
        """Swap the averaged weights out of the model, where EMAHook keeps them while validating."""
        swapped = [hook for hook in runner.hooks if isinstance(hook, EMAHook) and self._validating]
        for hook in swapped:
            hook._swap_ema_parameters()
        try:
            yield
        finally:
            for hook in swapped:
                hook._swap_ema_parameters()

    @contextmanager
    def _full_disk_explained(self, runner: Runner) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            noted = Path(runner.work_dir, 'last_checkpoint')
            last = noted.read_text() if noted.is_file() else 'none yet'
            raise SetupError(
                f'cannot write {error.filename}: {error.strerror}. Last good checkpoint: {last}. '
                'Free space, then rerun the same command with --resume'
            ) from error


def _check_shared_work_dir(runner: Runner) -> None:
    """Refuse separate work dirs, in which processes find different checkpoints."""
    place = torch.tensor([runner.epoch, runner.iter], device=get_device())
    places = [found.tolist() for found in all_gather(place)]
    if any(found != places[0] for found in places):
        raise SetupError(
            f'the processes resume at different (epoch, iteration): {places}; all machines must '
            'share the work dir'
        )


def _facts(runner: Runner) -> dict:
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    epoch_length = len(runner.train_dataloader) if by_epoch else None
    return run_facts(runner.cfg, get_world_size(), epoch_length)
