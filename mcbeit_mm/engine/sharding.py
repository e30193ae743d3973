"""Optimizer states sharded over the ranks (ZeRO stage 1), and how to save them."""

import torch
from mmengine.dist import is_distributed
from mmengine.optim import ZeroRedundancyOptimizer
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner

from ..errors import SetupError


@OPTIMIZERS.register_module()
class ShardedOptimizer(ZeroRedundancyOptimizer):
    """MMEngine's ZeroRedundancyOptimizer in a form that its Runner can save.

    MMEngine's `state_dict` gathers from all ranks, but its Runner calls it on rank 0 only, which
    hangs. Here `consolidate` gathers, and `state_dict` returns the whole state in the format of
    the plain optimizer: a checkpoint fits both, and any number of ranks.

    Args:
        optimizer_type: name of a class of torch.optim, which takes the other arguments.
    """

    def __init__(self, params, optimizer_type: str, **kwargs):
        if not is_distributed():
            raise SetupError(
                'ShardedOptimizer shards its state over processes: start with '
                'tools/dist_train.sh or tools/slurm_train.sh, or use the config without zero1'
            )
        super().__init__(params, optimizer_type, **kwargs)

    def state_dict(self) -> dict:
        """Return the state that `consolidate` gathered, once; RuntimeError without it."""
        state = super(ZeroRedundancyOptimizer, self).state_dict()
        self._all_state_dicts = []  # else torch would return it again when it is stale
        return state


def consolidate(runner: Runner) -> None:
    """Gather sharded optimizer states on rank 0; call it on all ranks before saving."""
    optimizer = runner.optim_wrapper.optimizer
    if isinstance(optimizer, torch.distributed.optim.ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict()
