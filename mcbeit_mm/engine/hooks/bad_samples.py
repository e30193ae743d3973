"""Report unreadable training samples, and stop if there are too many."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...datasets.bad_samples import BadSamples
from ...errors import SetupError

SHOWN = 3  # samples per warning in the log; the file lists all


@HOOKS.register_module()
class BadSamplesHook(Hook):
    """Logs the scalar `train/bad_samples`, and a warning whenever it increases.

    Each rank counts and limits its own samples. Data sets without `bad_samples` are ignored.

    Args:
        max_share: largest share of bad samples, 0..1.

    Raises:
        SetupError: there are more than `BadSamples.limit`.
    """

    def __init__(self, max_share: float = 0.01):
        if not 0 <= max_share <= 1:
            raise ValueError(f'expected max_share in [0, 1], got {max_share}')
        self.max_share = max_share
        self._count = self._shown = 0

    def before_train(self, runner: Runner) -> None:
        """Pass the limit to the workers."""
        bad = self._bad_samples(runner)
        if bad is not None:
            bad.max_share = self.max_share

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs=None
    ) -> None:
        """Log the count, warn if it has increased, stop above the limit."""
        bad = self._bad_samples(runner)
        if bad is None:
            return
        count = bad.count
        runner.message_hub.update_scalar('train/bad_samples', count)
        if count > self._count:
            self._warn(bad, count)
            self._count = count
            if complaint := bad.complaint():
                raise SetupError(complaint)

    def _warn(self, bad: BadSamples, count: int) -> None:
        entries = bad.entries()
        found, self._shown = entries[self._shown :], len(entries)
        shown = ''.join(f'\n  {e["path"] or e["index"]}: {e["reason"]}' for e in found[:SHOWN])
        where = f' (see {bad.report} for all)' if bad.report else ''
        print_log(
            f'unreadable training samples replaced so far: {count}; the run stops at more than '
            f'{bad.limit}{where}{shown}',
            logger='current',
            level=logging.WARNING,
        )

    @staticmethod
    def _bad_samples(runner: Runner) -> BadSamples | None:
        return getattr(runner.train_loop.dataloader.dataset, 'bad_samples', None)
