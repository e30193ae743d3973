"""Skip steps with non-finite gradients, report them and spikes of the loss."""

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
    """Lets no NaN or infinity into the weights, and names the images that it came from.

    A step whose gradients, or whose model's buffers (running statistics, averaged codes), are not
    finite changes neither weights nor the optimizer's state, and the buffers are put back as they
    were after the last good step. A GradScaler skips such steps itself, which is normal while it
    looks for its scale; here they are counted alike. Each skipped step, and each spike of the
    loss, is logged and appended to nonfinite.jsonl in the work dir (nonfinite_rank{r}.jsonl if
    there are several ranks, each with its own images).

    Args:
        max_in_a_row: so many skipped steps in a row end the run with SetupError on all ranks.
            GradScaler's 65536 is down to 1 after 16.
        spike: distance from the median of the last `window` losses, in median absolute
            deviations, from which a loss is reported; 10 are 6.7 standard deviations of a normal
            distribution. The first of successive ones is reported.
        window: iterations; nothing is reported before there are as many.
    """

    priority = 'HIGH'  # RuntimeInfoHook has noted the loss; EMAHook will average the buffers

    def __init__(self, max_in_a_row: int = 20, spike: float = 10.0, window: int = 100):
        if max_in_a_row < 1 or spike <= 0 or window < 2:
            raise ValueError(
                'need max_in_a_row >= 1, spike > 0 and window >= 2, got '
                f'{max_in_a_row=} {spike=} {window=}'
            )
        self.max_in_a_row, self.spike, self.window = max_in_a_row, spike, window

    def before_train(self, runner: Runner) -> None:
        """Look at all gradients from now on, right before the optimizer uses them."""
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict):
            raise SetupError(
                'NumericsHook serves one optimizer, not an OptimWrapperDict: remove it'
            )
        several = get_world_size() > 1
        name = f'nonfinite_rank{get_rank()}.jsonl' if several else 'nonfinite.jsonl'
        self._file = Path(runner.work_dir, name)
        self._finite: bool | None = None  # the gradients of this iteration's step, if there was one
        self._since_step: list[dict[str, Any]] = []  # the batches whose gradients are added up
        self._places = [  # a module may put another tensor into its place
            (module, name)
            for module in runner.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point() and buffer.isfinite().all()
        ]  # an attention mask may hold infinities
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

        def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._finite = _all_finite(wrapper, optimizer, self._buffers)
            if not self._finite:
                optimizer.zero_grad(set_to_none=True)  # makes the optimizer's step do nothing

        self._check = wrapper.optimizer.register_step_pre_hook(check)

    @property
    def _buffers(self) -> list[Tensor]:
        return [module._buffers[name] for module, name in self._places]

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer as it was."""
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
            return  # a model that steps in its own way
        if finite:
            _copy(self._kept, self._buffers)
            runner.message_hub.update_info('skipped_in_a_row', 0)
        else:
            _copy(self._buffers, self._kept)
            self._report_skip(runner, batches)

    def _report_skip(self, runner: Runner, batches: list[dict[str, Any]]) -> None:
        hub = runner.message_hub
        skipped = hub.get_info('skipped_steps', 0) + 1
        in_a_row = hub.get_info('skipped_in_a_row', 0) + 1
        hub.update_info('skipped_steps', skipped)  # in the checkpoint
        hub.update_info('skipped_in_a_row', in_a_row)
        losses = [_number(batch['losses'].get('loss', 0.0)) for batch in batches]
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        overflow = scaler is not None and all(map(math.isfinite, losses))
        kind = 'overflow' if overflow else 'nonfinite'
        images = self._write(kind, batches)
        text = f'step skipped at iteration {batches[-1]["iter"]}: '
        if overflow:
            text += f'the gradients overflow in fp16, the loss scale is now {scaler.get_scale():g}'
        else:
            text += f'non-finite gradients, losses {losses}, images {_few(images)}'
        text += f'; {in_a_row} in a row, {skipped} in all'
        runner.logger.log(logging.INFO if overflow else logging.WARNING, text)
        if in_a_row >= self.max_in_a_row:
            raise SetupError(
                f'{in_a_row} steps in a row had non-finite gradients, the last at iteration '
                f'{batches[-1]["iter"]}: lower the learning rate, use --precision bf16 instead of '
                f'fp16, and look at the images listed in {self._file}, such as {_few(images)}'
            )

    def _report_spike(self, runner: Runner, batch: dict[str, Any]) -> None:
        """Judge by the loss's history, which is in the checkpoint: a resumed run agrees."""
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
        """Return the largest unremarkable loss and the median."""
        finite = losses[np.isfinite(losses)]
        if len(losses) < self.window or not len(finite):
            return math.inf, math.nan
        median = float(np.median(finite))
        deviation = float(np.median(np.abs(finite - median)))
        # A loss that stands still has no deviation: a thousandth more is no spike.
        return median + max(self.spike * deviation, 1e-3 * abs(median)), median

    def _write(self, kind: str, batches: list[dict[str, Any]], **extra: float) -> list[str]:
        """Append one line on these batches; gives all their images."""
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
    """Judge gradients and buffers by their norms, on all ranks alike.

    By the largest element where we measure: the sum of squares of finite numbers may overflow.
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
    """Image paths of a batch as mmpretrain, mmseg and mmdet collate it, as far as it names them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, Mapping) else None
    samples = samples if isinstance(samples, list | tuple) else []
    paths = (getattr(sample, 'img_path', None) for sample in samples)
    return [str(path) for path in paths if path is not None]


def _number(value: Any) -> float:
    return float(value.detach().float().mean() if isinstance(value, Tensor) else value)


def _json_number(value: Any) -> float | str:
    """Return a number, or 'nan', 'inf', '-inf', which JSON has no numbers for."""
    number = _number(value)
    return number if math.isfinite(number) else str(number)


def _few(images: list[str]) -> str:
    if not images:
        return 'not named by the batch'
    rest = f' and {len(images) - 3} more' if len(images) > 3 else ''
    return ', '.join(images[:3]) + rest
