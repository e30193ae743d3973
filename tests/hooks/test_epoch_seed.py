"""The numbers of an epoch depend on seed and epoch, not on what was drawn before."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from mcbeit_mm.hooks import EpochSeedHook
from mcbeit_mm.transforms import RandomPatchMask, seed_worker


class Masks(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return RandomPatchMask(14).generate()


def epoch(number: int, seed: int = 0) -> tuple[torch.Tensor, list[float]]:
    runner = SimpleNamespace(seed=seed, epoch=number, train_loop=None)
    EpochSeedHook().before_train_epoch(runner)
    loader = DataLoader(Masks(), batch_size=3, num_workers=2, worker_init_fn=seed_worker)
    masks = torch.cat(list(loader))
    return masks, [random.random(), float(np.random.random()), float(torch.rand(()))]


def test_a_resumed_epoch_equals_the_uninterrupted_one():
    run = [epoch(number) for number in range(3)]
    masks, numbers = epoch(2)  # as after a resume: nothing was drawn before
    assert torch.equal(masks, run[2][0]) and numbers == run[2][1]
    assert not torch.equal(masks, run[0][0]) and numbers != run[0][1]
    assert not torch.equal(masks, epoch(2, seed=1)[0])
    flat = torch.cat([m for m, _ in run]).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)  # no mask twice


def test_a_loop_over_iterations_counts_them():
    loop = object.__new__(IterBasedTrainLoop)
    drawn = []
    for start in (0, 500, 500):
        runner = SimpleNamespace(seed=0, epoch=0, iter=start, train_loop=loop)
        EpochSeedHook().before_train_epoch(runner)
        drawn.append(float(torch.rand(())))
    assert drawn[0] != drawn[1] == drawn[2]
