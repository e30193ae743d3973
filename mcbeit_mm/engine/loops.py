"""Training loops that resume bit-exactly from any iteration.

Random numbers are a function of seed, rank and iteration (those of a sample: see `seeded_data`), so
no generator state is saved, and numbers drawn by a validation, a hook or a killed run have no
effect. MMEngine's loops restart an interrupted epoch at its first batch with other numbers.
"""

from collections.abc import Sequence

import torch
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..datasets.seeded_data import (
    STEPS,
    PositionBatchSampler,
    base_seed,
    seed_generators,
    seeded_loader,
)
from ..errors import SetupError

# Key in the message hub, which checkpoints hold: iteration of the last finished validation.
VALIDATED = 'validated_iter'


class _Resumable:
    """Shared code of both loops."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs):
        if isinstance(dataloader, dict):
            dataloader = seeded_loader(runner, dataloader)
        elif not isinstance(dataloader.batch_sampler, PositionBatchSampler):
            raise ValueError(
                f'{type(self).__name__} expects the config of a data loader, or one built by '
                'mcbeit_mm.datasets.seeded_data.seeded_loader'
            )
        super().__init__(runner, dataloader, **kwargs)

    @property
    def _batch_sampler(self) -> PositionBatchSampler:
        return self.dataloader.batch_sampler

    def _seed_data(self) -> None:
        """Use the seed from the checkpoint if the config has none."""
        seed = base_seed(self.runner)
        self.dataloader.dataset.reseed(seed)
        self._batch_sampler.seed = seed
        if hasattr(self._batch_sampler.sampler, 'seed'):
            self._batch_sampler.sampler.seed = seed

    def _seed_step(self, purpose: int = 0) -> None:
        key = (base_seed(self.runner), get_rank(), self._iter, purpose)
        seed_generators(STEPS, *key, cuda=True)

    def _validate(self, done: int) -> None:
        """Validate if it is due after `done` epochs or iterations."""
        self._decide_current_val_interval()
        if self.runner.val_loop is None or done < self.val_begin:
            return
        end = self._max_epochs if self._by_epoch else self._max_iters
        hub = self.runner.message_hub
        if (done % self.val_interval == 0 or done == end) and (
            hub.get_info(VALIDATED, None) != self._iter
        ):
            self._seed_step(purpose=1)
            self.runner.val_loop.run()
            hub.update_info(VALIDATED, self._iter)


@LOOPS.register_module()
class ResumableEpochLoop(_Resumable, EpochBasedTrainLoop):
    """EpochBasedTrainLoop with the same arguments that resumes exactly, also within an epoch.

    A validation that was due when the checkpoint was saved is repeated, unless SafeCheckpointHook
    recorded that it finished.
    """

    _by_epoch = True

    def run(self) -> torch.nn.Module:
        """Launch training."""
        self.runner.call_hook('before_train')
        self._seed_data()
        if self._iter and self._position == 0:
            self._validate(self._epoch)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate(self._epoch)
        self.runner.call_hook('after_train')
        return self.runner.model

    @property
    def _position(self) -> int:
        """Number of batches of the current epoch that are done."""
        position = self._iter - self._epoch * len(self.dataloader)
        if not 0 <= position <= len(self.dataloader):
            raise SetupError(
                f'the checkpoint is at epoch {self._epoch}, iteration {self._iter}, which does not '
                f'fit epochs of {len(self.dataloader)} iterations: use the batch size and data set '
                'it was saved with'
            )
        return position

    def run_epoch(self) -> None:
        """Train the rest of the epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._batch_sampler.epoch, self._batch_sampler.start = self._epoch, self._position
        for idx, data_batch in enumerate(self.dataloader, self._position):
            self.run_iter(idx, data_batch)
        self._seed_step(purpose=2)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Seed, then train one batch."""
        self._seed_step()
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class ResumableIterLoop(_Resumable, IterBasedTrainLoop):
    """IterBasedTrainLoop with the same arguments that resumes exactly.

    Validations are repeated as by `ResumableEpochLoop`.
    """

    _by_epoch = False

    def run(self) -> torch.nn.Module:
        """Launch training."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._seed_data()
        self._batch_sampler.epoch, self._batch_sampler.start = 0, self._iter
        if self._iter:
            self._validate(self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate(self._iter)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Seed, then train one batch."""
        self._seed_step()
        super().run_iter(data_batch)
