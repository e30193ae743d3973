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

SPIKE = 10.0  # median absolute deviations; 6.7 standard deviations of a normal distribution
WINDOW = 100  # iterations that a loss is compared with
SHOWN = 3  # images per step in the log; the file lists all


@HOOKS.register_module()
class NumericsHook(Hook):
    """Keeps NaN and infinity out of the weights, and lists the images that caused them.

    A step with non-finite gradients or model buffers (running statistics, averaged codes) changes
    neither weights nor optimizer state, and restores the buffers. Steps that a GradScaler skips
    while it looks for its scale are counted as well. Skipped steps and loss spikes are logged and
    appended to nonfinite.jsonl in the work dir (nonfinite_rank{r}.jsonl with several ranks).

    Args:
        max_in_a_row: SetupError on all ranks after this many skipped steps in a row; a
            GradScaler drops from 65536 to 1 in 16.
    """

    priority = 'HIGH'  # after RuntimeInfoHook logs the loss, before EMAHook averages buffers

    def __init__(self, max_in_a_row: int = 20):
        if max_in_a_row < 1:
            raise ValueError(f'expected max_in_a_row >= 1, got {max_in_a_row}')
        self.max_in_a_row = max_in_a_row

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
        for count in ('skipped_steps', 'skipped_in_a_row'):
            hub.update_info(count, hub.get_info(count, 0) + 1)
        in_a_row = hub.get_info('skipped_in_a_row')
        losses = [_number(batch['losses'].get('loss', 0.0)) for batch in batches]
        scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        overflow = scaled and all(map(math.isfinite, losses))  # the search for a loss scale
        kind, level = ('overflow', logging.INFO) if overflow else ('nonfinite', logging.WARNING)
        images = self._write(kind, batches)
        skip = f'skipped the step of iteration {batches[-1]["iter"]}, {in_a_row} in a row'
        runner.logger.log(level, f'{skip}: {kind} gradients, losses {losses}, images {images}')
        if in_a_row >= self.max_in_a_row:
            raise SetupError(
                f'{skip}: lower the learning rate, use --precision bf16 instead of fp16, and check '
                f'the images listed in {self._file}, such as {images}'
            )

    def _report_spike(self, runner: Runner, batch: dict[str, Any]) -> None:
        """Report the first of successive spikes.

        The losses are those of the message hub, so that a resumed run reports the same.
        """
        scalars = runner.message_hub.log_scalars
        if 'train/loss' not in scalars:
            return
        losses = scalars['train/loss'].data[0][-WINDOW - 2 :]
        if _is_spike(losses[-WINDOW - 1 :]) and not _is_spike(losses[:-1]):
            images = self._write('spike', [batch])
            runner.logger.warning(
                f'loss spike at iteration {batch["iter"]}: {losses[-1]:.4g} after '
                f'{losses[-2]:.4g}; images {images}'
            )

    def _write(self, kind: str, batches: list[dict[str, Any]]) -> str:
        """Append a line on these batches; return their first images, or 'unknown'."""
        images = [path for batch in batches for path in batch['images']]
        losses = [
            {k: _as_json(_number(v)) for k, v in batch['losses'].items()} for batch in batches
        ]
        entry = dict(kind=kind, iter=batches[-1]['iter'], losses=losses, images=images)
        with self._file.open('a') as file:
            file.write(json.dumps(entry) + '\n')
        rest = f' and {len(images) - SHOWN} more' if len(images) > SHOWN else ''
        return ', '.join(images[:SHOWN]) + rest or 'unknown'


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
    largest = torch.nn.utils.get_total_norm(buffers, math.inf)
    finite = math.isfinite(norm) and math.isfinite(largest)
    if get_world_size() > 1:  # gradients of DDP agree, buffers may not
        bad = torch.tensor(0.0 if finite else 1.0)
        all_reduce(bad, 'max')
        finite = not bad.item()
    return finite


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


def _is_spike(losses: np.ndarray) -> bool:
    """Whether the last loss is far above the median of the WINDOW before it."""
    *before, last = losses
    before = np.array(before)[np.isfinite(before)]
    if len(losses) <= WINDOW or not len(before) or not math.isfinite(last):
        return False
    median = np.median(before)
    deviation = np.median(np.abs(before - median))
    # A constant loss has no deviation: allow a thousandth.
    return last > median + max(SPIKE * deviation, 1e-3 * abs(median))


def _paths(data_batch: Any) -> list[str]:
    """Return the image paths in a batch as mmpretrain, mmseg and mmdet collate it."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, Mapping) else None
    samples = samples if isinstance(samples, list | tuple) else []
    paths = (getattr(sample, 'img_path', None) for sample in samples)
    return [str(path) for path in paths if path is not None]


def _number(value: Any) -> float:
    return float(value.detach().float().mean() if isinstance(value, Tensor) else value)


def _as_json(number: float) -> float | str:
    """Return a finite number, or the name of one that JSON does not have."""
    return number if math.isfinite(number) else str(number)
