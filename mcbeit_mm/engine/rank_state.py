"""State of each process that a checkpoint must hold, such as accumulated gradients.

A module with other state of its process defines `rank_state()`, which returns a tree of tensors and
plain values or None, and `load_rank_state(state)`.
"""

from typing import Any

import torch
import torch.distributed
from mmengine.device import get_device
from mmengine.dist import all_reduce, gather_object, get_rank, get_world_size, is_distributed
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import Tensor

from ..layers.model_wrappers import unwrap


def collect(runner: Runner) -> list[dict] | None:
    """Gather the states of all processes on rank 0; None on other ranks and if there are none.

    Call it on all ranks. Between accumulations, the ranks usually only exchange a flag.
    """
    state = _own_state(runner)
    flag = torch.tensor(int(bool(state)), device=get_device())
    all_reduce(flag, op='max')
    if not flag:
        return None
    if not is_distributed():
        return [state]
    group = torch.distributed.new_group(backend='gloo')  # through main memory, not rank 0's GPU
    try:
        return gather_object(state, group=group)
    finally:
        torch.distributed.destroy_process_group(group)


def restore(runner: Runner, states: list[dict]) -> None:
    """Load this process's part of what `collect` gathered.

    With another number of processes it is dropped with a warning.
    """
    if len(states) != get_world_size():
        runner.logger.warning(
            f'dropped the accumulated gradients in the checkpoint: saved by {len(states)} '
            f'processes, resumed by {get_world_size()}'
        )
        return
    state = states[get_rank()]
    model = unwrap(runner.model)
    for name, gradient in state.get('gradients', {}).items():
        param = model.get_parameter(name)
        param.grad = gradient.to(param.device, copy=True)
    for name, module_state in state.get('modules', {}).items():
        model.get_submodule(name).load_rank_state(module_state)


def _own_state(runner: Runner) -> dict[str, Any]:
    """Return the state of this process on the CPU, empty if there is none."""
    model = unwrap(runner.model)
    groups = runner.optim_wrapper.optimizer.param_groups
    updated = {id(p) for group in groups for p in group['params']}
    gradients = {
        name: p.grad
        for name, p in model.named_parameters()
        if p.grad is not None and id(p) in updated
    }
    modules = {
        name: state
        for name, module in model.named_modules()
        if hasattr(module, 'rank_state') and (state := module.rank_state()) is not None
    }
    parts = {k: v for k, v in dict(gradients=gradients, modules=modules).items() if v}
    return apply_to(parts, lambda x: isinstance(x, Tensor), lambda x: x.detach().cpu())
