"""Log images per second and the tokenizer's share of the step."""

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Adds images_per_s (all ranks) and tokenizer_share (0..1 of this rank's step time) to the
    training log.

    Args:
        interval: iterations between readings of the tokenizer's time; on CUDA each one waits for
            the device.
    """

    def __init__(self, interval: int = 10):
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Find and start the model's tokenizer timer, if it has one."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._timer = getattr(model, 'tokenizer_timer', None)
        self._seconds = 0.0
        if self._timer is not None:
            self._timer.enabled = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs=None
    ) -> None:
        """Update the two scalars; IterTimerHook has just measured the step."""
        hub = runner.message_hub
        seconds = hub.get_scalar('train/time').current()
        images = len(data_batch['data_samples']) * get_world_size()
        hub.update_scalar('train/images_per_s', images / max(seconds, 1e-9))
        self._seconds += seconds
        if self._timer is not None and self.every_n_train_iters(runner, self.interval):
            share = self._timer.pop() / max(self._seconds, 1e-9)
            hub.update_scalar('train/tokenizer_share', share)
            self._seconds = 0.0
