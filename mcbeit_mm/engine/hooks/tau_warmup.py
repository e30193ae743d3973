"""Warm up the temperature of the tokenizer's probabilities."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers.model_wrappers import unwrap
from ...targets import tau_at


@HOOKS.register_module()
class TauWarmupHook(Hook):
    """Changes tau linearly from `tau_start` to the head's tau over the first epochs.

    The published recipe keeps tau at 4.0 and does not use this hook. The schedule is a function of
    the epoch (`targets.tau_at`), so a resumed run continues it.
    """

    def __init__(self, tau_start: float, warmup_epochs: int = 30):
        if tau_start <= 0:
            raise ValueError(f'expected tau_start > 0, got {tau_start}')
        self.tau_start, self.warmup_epochs = tau_start, warmup_epochs

    def before_train(self, runner: Runner) -> None:
        """Store the final tau."""
        model = unwrap(runner.model)
        self._settings = model.head.multi_choice
        self._tau = self._settings.tau

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the epoch's tau."""
        self._settings.tau = tau_at(runner.epoch, self._tau, self.tau_start, self.warmup_epochs)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Log tau next to the learning rate."""
        runner.message_hub.update_scalar('train/tau', self._settings.tau)

    def after_train(self, runner: Runner) -> None:
        """Restore the final tau."""
        self._settings.tau = self._tau
