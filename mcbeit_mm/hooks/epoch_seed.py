"""Make an epoch's random numbers depend on the seed, the rank and the epoch alone."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds torch, NumPy and random before each epoch, so that a resumed run does not start over.

    A loop over iterations has one epoch, so the iteration it starts at counts instead.
    Workers that start anew each epoch (`persistent_workers=False`) take their seeds from torch's,
    see `transforms.seed_worker`.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the generators of this process."""
        by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
        start = [0, runner.iter] if by_iter else [runner.epoch]
        entropy = np.random.SeedSequence([runner.seed, get_rank(), *start])
        torch_seed, numpy_seed, python_seed = (int(x) for x in entropy.generate_state(3))
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        random.seed(python_seed)
