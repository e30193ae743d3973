"""Samples depend only on the seed and their place."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader

from mcbeit_mm.datasets import seeded_data
from mcbeit_mm.datasets.seeded_data import PositionBatchSampler, SeededDataset


class Drawing(torch.utils.data.Dataset):
    """Each item is its index and one number from each generator that transforms may use."""

    metainfo = dict(classes=('a',))

    def __init__(self, size: int = 24):
        self.size, self.read, self.pipeline = size, 0, 'first'

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read += 1
        return np.array([index, np.random.random(), random.random(), float(torch.rand(()))])


def loader(sampler='default', workers=0, rank=0, world_size=1, batch_size=4, seed=7, **kwargs):
    data = SeededDataset(Drawing(), seed)
    kind = DefaultSampler if sampler == 'default' else InfiniteSampler
    drawn = kind(data, shuffle=True, seed=seed)
    keys = PositionBatchSampler(drawn, batch_size, drop_last=True)
    return DataLoader(data, batch_sampler=keys, num_workers=workers, **kwargs)


def batches(loader, count: int, epoch: int = 0, start: int = 0) -> list[torch.Tensor]:
    """`count` batches over as many epochs as they take."""
    loader.batch_sampler.epoch, loader.batch_sampler.start = epoch, start
    seen = []
    while len(seen) < count:
        for batch in loader:
            seen.append(batch)
            if len(seen) == count:
                break
    return seen


@pytest.mark.parametrize('sampler', ['default', 'infinite'])
@pytest.mark.parametrize(
    'workers, persistent', [(0, False), (2, False), (2, True)], ids=['main', 'workers', 'kept']
)
def test_any_start_gives_the_rest_of_the_run(sampler, workers, persistent):
    whole = batches(loader(sampler), 14)
    kwargs = dict(workers=workers, persistent_workers=persistent)
    for start in (1, 6, 11):
        rest = batches(loader(sampler, **kwargs), 14 - start, start=start)
        assert torch.equal(torch.stack(rest), torch.stack(whole[start:]))


def test_skipped_batches_are_not_read():
    data = loader()
    batches(data, 2, start=4)
    assert data.dataset.dataset.read == 2 * 4


def test_no_number_is_drawn_twice():
    numbers = torch.cat(batches(loader(workers=2), 18))[:, 1:]
    assert len(numbers.flatten().unique()) == numbers.numel()
    other = torch.cat(batches(loader(seed=8), 18))[:, 1:]
    assert len(torch.cat([numbers, other]).flatten().unique()) == 2 * numbers.numel()


def test_order_of_an_epoch_is_that_of_the_sampler():
    sampler = DefaultSampler(range(24), shuffle=True, seed=7)
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        seen = torch.cat(batches(loader(), 6, epoch=epoch))[:, 0].int().tolist()
        assert seen == list(sampler)


@pytest.mark.parametrize('sampler', ['default', 'infinite'])
@pytest.mark.parametrize('world_size', [2, 4])
def test_ranks_see_together_what_one_process_sees(monkeypatch, world_size, sampler):
    one = batches(loader(sampler, batch_size=8), 5)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info', lambda r=rank: (r, world_size)
        )
        monkeypatch.setattr(seeded_data, 'get_rank', lambda r=rank: r)
        monkeypatch.setattr(seeded_data, 'get_world_size', lambda: world_size)
        parts.append(batches(loader(sampler, batch_size=8 // world_size), 5))
    for number, whole in enumerate(one):
        together = torch.stack([part[number] for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(together, whole)


def test_data_set_without_a_batch():
    data = loader(batch_size=32)
    with pytest.raises(ValueError, match='no batch'):
        batches(data, 1, start=1)


def test_attributes_are_those_of_the_data_set():
    data = SeededDataset(Drawing(), 0)
    data.pipeline = 'second'  # as mmdet's PipelineSwitchHook does
    assert data.dataset.pipeline == 'second' and data.metainfo == dict(classes=('a',))
    assert len(data) == 24 and not hasattr(data, 'absent')
    copied = pickle.loads(pickle.dumps(data.dataset)), pickle.loads(pickle.dumps(data))
    assert copied[1].pipeline == copied[0].pipeline == 'second'


class Choosing(torch.utils.data.Sampler):
    """Draws from a global generator while it is iterated, as mmdet's GroupMultiSourceSampler."""

    def __iter__(self):
        for _ in range(24):
            yield int(np.random.randint(24))


def test_a_sampler_that_draws_from_the_global_generators():
    def choosing(start, count):
        np.random.seed(start)  # must not matter
        keys = PositionBatchSampler(Choosing(), 4, seed=7)
        keys.start = start
        seen = []
        while len(seen) < count:
            seen += list(keys)
        return seen[:count]

    whole = choosing(0, 14)
    assert len({index for batch in whole for index, _ in batch}) > 12
    for start in (1, 6, 9):
        assert choosing(start, 14 - start) == whole[start:]


def test_streams_differ():
    drawn = []
    for place in ((0, 1, 2), (1, 1, 2), (0, 1, 2, 0), (0, 1)):
        seeded_data.seed_generators(*place)
        drawn += [float(torch.rand(())), np.random.random(), random.random()]
    assert len(set(drawn)) == len(drawn)
    seeded_data.seed_generators(0, 1, 2)
    assert [float(torch.rand(())), np.random.random(), random.random()] == drawn[:3]
