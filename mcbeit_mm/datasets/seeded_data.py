"""Samples whose random numbers depend only on the seed and their position in the data order.

They depend neither on the worker nor on earlier samples: a run resumes from any batch without
reading the ones before it, with any number of workers, and the ranks that share a global batch see
what one process would.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ..errors import SetupError
from .bad_samples import BadSamples

SAMPLES, STEPS, ORDER, CROPS = range(4)  # streams of random numbers

Place = tuple[int, int]  # epoch, position in the global order of that epoch
Key = tuple[int, Place]  # index of a sample, its place


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Wraps a data set to be read by `Key`; seeds torch, NumPy and random before each sample.

    A sample that cannot be read is replaced and reported, see `BadSamples`. All other attributes
    are read from and set on the wrapped data set.

    Args:
        report: file that lists the samples that could not be read.
    """

    OWN = ('dataset', 'seed', 'bad_samples')

    def __init__(self, dataset: Dataset | dict, seed: int, report: Path | None = None):
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        if not hasattr(dataset, '__len__'):
            raise SetupError(
                f'{type(dataset).__name__} has no length: resumable loops need a map-style data set'
            )
        self.dataset, self.seed = dataset, seed
        self.bad_samples = BadSamples(len(dataset), seed, report)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        index, place = key
        for attempt, candidate in enumerate(self.bad_samples.candidates(index)):
            seed_generators(SAMPLES, self.seed, *place, attempt)
            try:
                return self.dataset[candidate]
            except Exception as error:  # BadSamplesHook ends the run if there are too many
                self.bad_samples.note(candidate, self._path(candidate), error)

    def reseed(self, seed: int) -> None:
        """Change the seed, before workers start."""
        self.seed = self.bad_samples.seed = seed

    def _path(self, index: int) -> str | None:
        try:
            return self.dataset.get_data_info(index).get('img_path')
        except Exception:  # not an MMEngine data set, or without paths
            return None

    def __getattr__(self, name: str) -> Any:
        if name in self.OWN or name.startswith('__'):  # not yet set, as while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


@DATA_SAMPLERS.register_module()
class PositionBatchSampler:
    """Yields batches of `Key` instead of indices, starting at any batch.

    The next iteration starts at batch `start` of `epoch`; it advances `epoch` and resets `start`.
    Skipped batches are not read.

    Args:
        batches: config of a batch sampler that supplies the lists of indices.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        drop_last: bool = False,
        batches: dict | None = None,
        seed: int = 0,
    ):
        self.sampler, self.batch_size, self.seed = sampler, batch_size, seed
        self.batches = BatchSampler(sampler, batch_size, drop_last)
        if batches:
            inner = dict(sampler=sampler, batch_size=batch_size)
            self.batches = DATA_SAMPLERS.build(batches, default_args=inner)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        # A generator: DataLoader calls iter() twice, only the one it draws from may advance.
        epoch, start = self.epoch, self.start
        while True:
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            batches = self._draw_batches(epoch)
            skipped = sum(1 for _, _ in zip(range(start), batches, strict=False))
            if skipped == start:
                break
            if skipped == 0:
                raise ValueError('the data set yields no batch: fewer images than the batch size?')
            epoch, start = epoch + 1, start - skipped
        self.epoch, self.start = epoch + 1, 0
        yield from self._add_places(batches, epoch, start)

    def _draw_batches(self, epoch: int) -> Iterator[list[int]]:
        """Draw an epoch; seed the global generators for samplers that use them."""
        batches = iter(self.batches)
        for number in itertools.count():
            with generators_kept():
                seed_generators(ORDER, self.seed, epoch, number)
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _add_places(
        self, batches: Iterator[list[int]], epoch: int, start: int
    ) -> Iterator[list[Key]]:
        rank, world_size = get_rank(), get_world_size()
        for number, batch in enumerate(batches, start):
            first = number * self.batch_size
            # MMEngine's samplers distribute the global order over the ranks round-robin.
            yield [
                (index, (epoch, (first + slot) * world_size + rank))
                for slot, index in enumerate(batch)
            ]


def seeded_loader(runner: Runner, config: dict) -> DataLoader:
    """Build a training DataLoader with a `SeededDataset` from its config."""
    config, seed = dict(config), base_seed(runner)
    if not config.get('num_workers'):
        config.pop('persistent_workers', None)  # torch refuses the pair
    name = f'bad_samples_rank{get_rank()}.jsonl' if get_world_size() > 1 else 'bad_samples.jsonl'
    config['dataset'] = dict(
        type=SeededDataset,
        dataset=config['dataset'],
        seed=seed,
        report=Path(runner.work_dir, name),
    )
    config['batch_sampler'] = dict(
        type=PositionBatchSampler,
        drop_last=config.pop('drop_last', False),
        batches=config.get('batch_sampler'),
        seed=seed,
    )
    return runner.build_dataloader(config, seed=seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore torch's CPU generator, NumPy's and random's."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def base_seed(runner: Runner) -> int:
    """Return the run's seed, equal on all ranks."""
    own = runner._randomness_cfg.get('diff_rank_seed', False)  # then MMEngine has added the rank
    return runner.seed - get_rank() if own else runner.seed


def seed_generators(stream: int, *place: int, cuda: bool = False) -> None:
    """Seed torch's CPU generator, NumPy, random and, with `cuda`, all CUDA generators.

    Args:
        stream: distinct for each use, so that equal places draw different numbers.
    """
    # SeedSequence treats (1, 2) and (1, 2, 0) alike: the length distinguishes them.
    words = np.random.SeedSequence([stream, len(place), *place]).generate_state(4).tolist()
    torch_seed = words[0] << 32 | words[1]
    torch.default_generator.manual_seed(torch_seed)
    np.random.seed(words[2])
    random.seed(words[3])
    if cuda and torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch_seed)
