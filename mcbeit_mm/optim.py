"""Parameter groups, learning-rate schedule and bf16 wrapper for pretraining and transfer.

Source: lixiaotong97/mc-BEiT@37489a1 optim_factory.py, utils.py.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, PARAM_SCHEDULERS
from torch import nn

from .errors import SetupError
from .layers.model_wrappers import unwrap

NO_DECAY = ('cls_token', 'pos_embed')


def layer_id(name: str, num_layers: int) -> int:
    """Depth of a parameter: 0 for embeddings, i + 1 for block i, num_layers + 1 for the rest."""
    name = name.removeprefix('backbone.')
    if name in ('cls_token', 'mask_token', 'pos_embed') or name.startswith('patch_embed.'):
        return 0
    block = re.match(r'blocks\.(\d+)\.', name)
    return int(block[1]) + 1 if block else num_layers + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Groups parameters by depth and weight decay; deeper layers of the backbone learn faster.

    The learning rate at depth i is lr * layer_decay_rate ** (num_layers + 1 - i), see `layer_id`.
    One-dimensional parameters (biases, norms, layer scale) and `no_decay` names get no weight
    decay.

    Args (of `paramwise_cfg`):
        layer_decay_rate: 1.0 gives the two groups of pretraining.
        no_decay: last components of parameter names without weight decay; by default the class
            token and absolute positions.
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the groups of `module`, a model with a `backbone`, to `params`."""
        settings = dict(layer_decay_rate=1.0, no_decay=NO_DECAY)
        unknown = set(self.paramwise_cfg) - set(settings)
        if unknown:
            raise SetupError(
                f'paramwise_cfg has unknown keys {sorted(unknown)}, known: {sorted(settings)}'
            )
        settings.update(self.paramwise_cfg)
        model = unwrap(module)
        num_layers = model.backbone.num_layers
        groups: dict[tuple[int, bool], dict] = {}
        names: dict[tuple[int, bool], list[str]] = {}
        for name, param in model.named_parameters():
            if not param.requires_grad:
                continue
            flat = param.ndim == 1 or name.endswith('.bias')
            decayed = not flat and name.rpartition('.')[2] not in settings['no_decay']
            depth = layer_id(name, num_layers) if settings['layer_decay_rate'] != 1 else -1
            if (depth, decayed) not in groups:
                scale = (
                    settings['layer_decay_rate'] ** (num_layers + 1 - depth) if depth >= 0 else 1.0
                )
                names[depth, decayed] = []
                groups[depth, decayed] = dict(
                    params=[],
                    lr=self.base_lr * scale,
                    lr_scale=scale,
                    weight_decay=(self.base_wd or 0.0) * decayed,
                )
            groups[depth, decayed]['params'].append(param)
            names[depth, decayed].append(name)
        order = sorted(groups)
        params.extend(groups[key] for key in order)
        print_log(_group_table(params, [names[key] for key in order]), logger='current')


def _group_table(groups: list[dict], names: list[list[str]]) -> str:
    lines = ['parameter groups: lr scale, weight decay, tensors, values, first parameter']
    for group, members in zip(groups, names, strict=True):
        size = sum(param.numel() for param in group['params'])
        lines.append(
            f'  {group["lr_scale"]:.6f}  {group["weight_decay"]:<6g} {len(members):4d} '
            f'{size:13,d}  {members[0]}'
        )
    return '\n'.join(lines)


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up from 0 to the base rate inclusive, then half a cosine down to eta_min_ratio
    times the base rate.

    MMEngine's LinearLR cannot start at 0: its factor must be positive. `eta_min_ratio` is relative
    to each group's own rate, so layer decay scales both, as in the authors' code.

    Args:
        warmup: length of the warm-up, in the unit of `end` (epochs with `by_epoch=True`).
        eta_min_ratio: final rate / base rate; 1e-5 / 1.5e-3 in the authors' base recipe.
    """

    def __init__(
        self,
        optimizer,
        *args,
        warmup: float = 0,
        eta_min_ratio: float = 0.0,
        end: int = INF,
        **kwargs,
    ):
        if end == INF or not 0 <= warmup <= end - kwargs.get('begin', 0):
            raise SetupError(
                f'end must be given and warmup must be in [0, end - begin], got {warmup=} {end=}'
            )
        self.warmup, self.eta_min_ratio = warmup, eta_min_ratio
        super().__init__(optimizer, *args, end=end, **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls, *args, warmup=0, begin=0, end=INF, by_epoch=True, epoch_length=None, **kwargs
    ) -> 'WarmupCosineLR':
        """Convert lengths in epochs to iterations (`convert_to_iter_based=True`)."""
        warmup, begin = int(warmup * epoch_length), int(begin * epoch_length)
        end = int(end * epoch_length) if end != INF else INF
        return cls(*args, warmup=warmup, begin=begin, end=end, by_epoch=False, **kwargs)

    def factor(self, step: int) -> float:
        """Return the multiple of the base rate at a step counted from `begin`."""
        if step < self.warmup:
            return step / (self.warmup - 1) if self.warmup > 1 else 0.0
        total = self.end - self.begin - self.warmup
        cosine = (1 + math.cos(math.pi * (step - self.warmup) / total)) / 2
        return self.eta_min_ratio + (1 - self.eta_min_ratio) * cosine

    def _get_value(self) -> list[float]:
        return [base * self.factor(self.last_step) for base in self.base_values]


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Runs the forward pass under bfloat16 autocast, on CUDA or CPU, without a loss scaler.

    MMEngine's AmpOptimWrapper does not support the CPU, and scales the loss, which bf16 does not
    need.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass; no gradient sync while accumulating."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
