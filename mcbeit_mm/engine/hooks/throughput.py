"""Log images per second and the tokenizer's share of the step."""

import time

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...layers.model_wrappers import unwrap


class ForwardTimer:
    """Sums the time of a module's forward passes through forward hooks.

    On CUDA it records events on the stream that is current, so only `pop` waits for the device.
    """

    def __init__(self, module: nn.Module):
        self._times: list[float | torch.cuda.Event] = []  # start, end, start, ...
        self._handles = (
            module.register_forward_pre_hook(self._record),
            module.register_forward_hook(self._record),
        )

    def _record(self, module: nn.Module, args: tuple, output: torch.Tensor | None = None) -> None:
        if args[0].is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._times.append(event)
        else:
            self._times.append(time.perf_counter())

    def pop(self) -> float:
        """Return the seconds since the last `pop`."""
        times, self._times = self._times, []
        pairs = list(zip(times[::2], times[1::2], strict=True))
        if times and isinstance(times[0], float):
            return sum(end - start for start, end in pairs)
        if times:
            times[-1].synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1000

    def remove(self) -> None:
        """Remove the hooks from the module."""
        for handle in self._handles:
            handle.remove()


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs images_per_s (all ranks) and tokenizer_share (0..1, of this rank's step time).

    Args:
        interval: iterations between readings of the tokenizer's time; on CUDA each one waits for
            the device.
    """

    def __init__(self, interval: int = 10):
        self.interval = interval
        self._timer: ForwardTimer | None = None

    def before_train(self, runner: Runner) -> None:
        """Start timing the model's tokenizer, if it has one."""
        tokenizer = getattr(unwrap(runner.model), 'tokenizer', None)
        self._timer = ForwardTimer(tokenizer) if isinstance(tokenizer, nn.Module) else None
        self._seconds = 0.0

    def after_train(self, runner: Runner) -> None:
        """Stop timing."""
        if self._timer is not None:
            self._timer.remove()
            self._timer = None

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
