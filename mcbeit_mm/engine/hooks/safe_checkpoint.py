"""Checkpoints that survive crashes, full disks and signals."""

import os.path as osp
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from ...errors import SetupError
from ...fileio.atomic_files import (
    FULL,
    AtomicLocalBackend,
    remove_leftovers,
    write_atomically,
)
from ..experiment import run_facts
from ..loops import VALIDATED
from ..rank_state import collect, restore
from ..resume import move_position
from ..sharding import consolidate

INTERRUPTED = 'interrupted_iter_{}.pth'


class _RemovesLater(AtomicLocalBackend):
    """A file backend that postpones removals: MMEngine removes old checkpoints before it writes."""

    def __init__(self):
        self._outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self._outdated.append(str(filepath))

    def remove_now(self) -> None:
        for path in filter(self.isfile, self._outdated):
            super().remove(path)
        self._outdated.clear()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, same arguments, for runs that may be stopped at any moment.

    Files are written atomically, `last_checkpoint` follows the file it names, and what
    `max_keep_ckpts` or a better `save_best` replaces is removed last. Checkpoints also hold
    `rank_states` (see `rank_state`) and meta['run'] (see `experiment.run_facts`).

    Raises:
        SetupError: the disk is full (the message names the last good checkpoint), or `out_dir` is
            not a local folder.
    """

    _rank_states: list | None = None  # to be saved, or loaded and to be restored
    _saved_iter: int | None = None  # iterations done at the last save

    def before_train(self, runner: Runner) -> None:
        """Clean up after killed writers, restore the state of this rank."""
        _check_shared_work_dir(runner)
        if '://' in str(self.out_dir):
            raise SetupError(f'SafeCheckpointHook: expected a local out_dir, got {self.out_dir}')
        self.backend_args = dict(backend='atomic')
        super().before_train(runner)
        self.file_backend = _RemovesLater()
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
        """Keep `rank_states` until training starts; adapt the position to the batch size.

        Accumulated gradients of another batch size are dropped.
        """
        states, meta = checkpoint.pop('rank_states', None), checkpoint.get('meta') or {}
        if 'iter' not in meta or not isinstance(runner._train_loop, BaseLoop):
            return  # in a test, the training data set must not be built
        place = meta['iter']
        move_position(meta, _facts(runner))
        if states is not None and meta['iter'] != place:
            runner.logger.warning(
                'dropped the accumulated gradients in the checkpoint: the batch size has changed'
            )
            states = None
        self._rank_states = states

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint; MMEngine then saves the regular one again."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)

    def save_now(self, runner: Runner) -> None:
        """Save a checkpoint to resume exactly here.

        Call it on all ranks, at the end of an `after_train_iter`. The next checkpoint replaces the
        file.
        """
        done = runner.iter + 1
        if self._saved_iter == done and self.save_optimizer and self.save_param_scheduler:
            return
        meta = dict(epoch=runner.epoch, iter=done)
        self._write(runner, INTERRUPTED.format(done), meta, complete=True)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts and is_main_process():
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids[0])
                self.file_backend.remove(Path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)  # drops the first of max_keep_ckpts
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._write(runner, self.filename_tmpl.format(step), meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._full_disk_explained(runner):
            super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()

    def _write(self, runner: Runner, name: str, meta: dict, complete: bool = False) -> None:
        """Write a checkpoint, then last_checkpoint, then remove what they replace."""
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
        if is_main_process():
            for file in Path(self.out_dir).glob(INTERRUPTED.format('*')):
                if file.name != name:
                    self.file_backend.remove(file)
            self.file_backend.remove_now()

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
