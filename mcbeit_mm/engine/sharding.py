"""Optimizer states divided among the ranks (ZeRO stage 1), and their way into checkpoints."""

import torch
from mmengine.dist import is_distributed
from mmengine.optim import OptimWrapperDict, ZeroRedundancyOptimizer
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner

from ..errors import SetupError


@OPTIMIZERS.register_module()
class ShardedOptimizer(ZeroRedundancyOptimizer):
    """MMEngine's ZeroRedundancyOptimizer in a form that its Runner can save.

    MMEngine's `state_dict` gathers from all ranks but its Runner calls it on rank 0 alone, which
    then waits forever. Here `consolidate` gathers, and `state_dict` gives the whole state once,
    in the format of the plain optimizer: checkpoints fit both, and any number of ranks.

    Args:
        optimizer_type: name of a class of torch.optim; further arguments are its own.
    """

    def __init__(self, params, optimizer_type: str, **kwargs):
        if not is_distributed():
            raise SetupError(
                'ShardedOptimizer divides its state among processes: start with '
                'tools/dist_train.sh or tools/slurm_train.sh, or take the config without it'
            )
        super().__init__(params, optimizer_type, **kwargs)

    def state_dict(self) -> dict:
        """The state that `consolidate` has brought to this rank; RuntimeError without it."""
        state = super(ZeroRedundancyOptimizer, self).state_dict()
        self._all_state_dicts = []  # torch would give it again when it is stale
        return state


def consolidate(runner: Runner) -> None:
    """Bring sharded optimizer states to rank 0, which saves; for all ranks to call before it."""
    wrapper = runner.optim_wrapper
    for each in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
        if isinstance(each.optimizer, torch.distributed.optim.ZeroRedundancyOptimizer):
            each.optimizer.consolidate_state_dict()
