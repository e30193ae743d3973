"""Skip steps with non-finite gradients, and report them and loss spikes."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...errors import SetupError


@HOOKS.register_module()
class NumericsHook(Hook):
    """Keeps NaN and infinity out of the weights, and lists the images that caused them.

    A step with non-finite gradients or model buffers (running statistics, averaged codes) changes
    neither weights nor optimizer state, and restores the buffers. Steps that a GradScaler skips
    while it looks for its scale are counted as well. Skipped steps and loss spikes are logged and
    appended to nonfinite.jsonl in the work dir (nonfinite_rank{r}.jsonl with several ranks).

    Args:
        max_in_a_row: SetupError on all ranks after this many skipped steps in a row; a
            GradScaler gets from 65536 to 1 in 16.
        spike: distance of a loss from the median of the last `window` ones, in median absolute
            deviations, that is reported; 10 are 6.7 standard deviations of a normal
            distribution. Of successive spikes only the first is reported.
        window: iterations, also before the first report.
    """

    priority = 'HIGH'  # after RuntimeInfoHook logs the loss, before EMAHook averages buffers

    def __init__(self, max_in_a_row: int = 20, spike: float = 10.0, window: int = 100):
        if max_in_a_row < 1 or spike <= 0 or window < 2:
            raise ValueError(
                'expected max_in_a_row >= 1, spike > 0 and window >= 2, got '
                f'{max_in_a_row=} {spike=} {window=}'
            )
        self.max_in_a_row, self.spike, self.window = max_in_a_row, spike, window

    def before_train(self, runner: Runner) -> None:
        """Check all gradients from now on, right before the optimizer uses them."""
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict):
            raise SetupError('NumericsHook supports one optimizer, not an OptimWrapperDict')
        several = get_world_size() > 1
        name = f'nonfinite_rank{get_rank()}.jsonl' if several else 'nonfinite.jsonl'
        self._file = Path(runner.work_dir, name)
        self._finite: bool | None = None  # gradients of this iteration's step; None: no step
        self._since_step: list[dict[str, Any]] = []  # batches whose gradients are accumulated
        self._places = [  # names, as a module may replace the tensor
            (module, name)
            for module in runner.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point() and buffer.isfinite().all()
        ]  # an attention mask may hold infinities
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

        def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._finite = _all_finite(wrapper, optimizer, self._buffers)
            if not self._finite:
                optimizer.zero_grad(set_to_none=True)  # turns the step into a no-op

        self._check = wrapper.optimizer.register_step_pre_hook(check)

    @property
    def _buffers(self) -> list[Tensor]:
        return [module._buffers[name] for module, name in self._places]

    def after_train(self, runner: Runner) -> None:
        """Remove the check from the optimizer."""
        self._check.remove()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Count and report a skipped step, or keep the buffers of a good one."""
        batch = dict(iter=runner.iter + 1, losses=dict(outputs or {}), images=_paths(data_batch))
        self._report_spike(runner, batch)
        self._since_step.append(batch)
        if not runner.optim_wrapper.should_update():
            return
        finite, self._finite = self._finite, None
        batches, self._since_step = self._since_step, []
        if finite is None and not hasattr(runner.optim_wrapper, 'loss_scaler'):
            return  # a model that does not step through the wrapper
        if finite:
            _copy(self._kept, self._buffers)
            runner.message_hub.update_info('skipped_in_a_row', 0)
        else:
            _copy(self._buffers, self._kept)
            self._report_skip(runner, batches)

    def _report_skip(self, runner: Runner, batches: list[dict[str, Any]]) -> None:
        hub = runner.message_hub  # saved in checkpoints
        skipped = hub.get_info('skipped_steps', 0) + 1
        in_a_row = hub.get_info('skipped_in_a_row', 0) + 1
        hub.update_info('skipped_steps', skipped)
        hub.update_info('skipped_in_a_row', in_a_row)
        losses = [_number(batch['losses'].get('loss', 0.0)) for batch in batches]
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        overflow = scaler is not None and all(map(math.isfinite, losses))
        images = self._write('overflow' if overflow else 'nonfinite', batches)
        reason = (
            f'fp16 gradients overflow, loss scale is now {scaler.get_scale():g}'
            if overflow
            else f'non-finite gradients, losses {losses}, images {_few(images)}'
        )
        iteration = batches[-1]['iter']
        runner.logger.log(
            logging.INFO if overflow else logging.WARNING,
            f'step skipped at iteration {iteration}: {reason}; {in_a_row} in a row, '
            f'{skipped} in total',
        )
        if in_a_row >= self.max_in_a_row:
            raise SetupError(
                f'{in_a_row} steps in a row had non-finite gradients, the last at iteration '
                f'{iteration}: lower the learning rate, use --precision bf16 instead of fp16, '
                f'and check the images listed in {self._file}, such as {_few(images)}'
            )

    def _report_spike(self, runner: Runner, batch: dict[str, Any]) -> None:
        """Use the loss history of the message hub, so that a resumed run reports the same."""
        scalars = runner.message_hub.log_scalars
        if 'train/loss' not in scalars:
            return
        losses = scalars['train/loss'].data[0][-self.window - 2 :]
        limit, median = self._limit(losses[-self.window - 1 : -1])
        before, _ = self._limit(losses[:-2])
        if not limit < losses[-1] < math.inf or before < losses[-2] < math.inf:
            return
        images = self._write('spike', [batch], median=median)
        runner.logger.warning(
            f'loss spike at iteration {batch["iter"]}: {losses[-1]:.4g}, the median of the last '
            f'{self.window} is {median:.4g}; images {_few(images)}'
        )

    def _limit(self, losses: np.ndarray) -> tuple[float, float]:
        """Return the largest loss that is no spike, and the median."""
        finite = losses[np.isfinite(losses)]
        if len(losses) < self.window or not len(finite):
            return math.inf, math.nan
        median = float(np.median(finite))
        deviation = float(np.median(np.abs(finite - median)))
        # A constant loss has no deviation: allow a thousandth.
        return median + max(self.spike * deviation, 1e-3 * abs(median)), median

    def _write(self, kind: str, batches: list[dict[str, Any]], **extra: float) -> list[str]:
        """Append a line on these batches; return all their images."""
        images = [path for batch in batches for path in batch['images']]
        losses = [
            {name: _json_number(value) for name, value in batch['losses'].items()}
            for batch in batches
        ]
        entry = dict(kind=kind, iter=batches[-1]['iter'], losses=losses, images=images, **extra)
        with self._file.open('a') as file:
            file.write(json.dumps(entry) + '\n')
        return images


@torch.no_grad()
def _all_finite(
    wrapper: OptimWrapper, optimizer: torch.optim.Optimizer, buffers: list[Tensor]
) -> bool:
    """Check gradients and buffers on all ranks.

    Uses the infinity norm: a sum of squares of finite numbers may overflow.
    """
    if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
        # OptimWrapper has just measured it, and scaled the gradients by its inverse.
        norm = wrapper.message_hub.get_scalar('train/grad_norm').current()
    else:
        params = (p for group in optimizer.param_groups for p in group['params'])
        grads = [p.grad for p in params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads, math.inf)
        norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
    largest = torch.nn.utils.get_total_norm(buffers, math.inf)
    finite = math.isfinite(norm) and math.isfinite(largest)
    if get_world_size() > 1:  # DDP's gradients agree; sharded ones and buffers may not
        bad = torch.tensor(0.0 if finite else 1.0)
        all_reduce(bad, 'max')
        finite = not bad.item()
    return finite


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


def _paths(data_batch: Any) -> list[str]:
    """Return the image paths in a batch as mmpretrain, mmseg and mmdet collate it."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, Mapping) else None
    samples = samples if isinstance(samples, list | tuple) else []
    paths = (getattr(sample, 'img_path', None) for sample in samples)
    return [str(path) for path in paths if path is not None]


def _number(value: Any) -> float:
    return float(value.detach().float().mean() if isinstance(value, Tensor) else value)


def _json_number(value: Any) -> float | str:
    """Return a number, or 'nan', 'inf', '-inf', which JSON lacks."""
    number = _number(value)
    return number if math.isfinite(number) else str(number)


def _few(images: list[str]) -> str:
    if not images:
        return 'not named by the batch'
    rest = f' and {len(images) - 3} more' if len(images) > 3 else ''
    return ', '.join(images[:3]) + rest
