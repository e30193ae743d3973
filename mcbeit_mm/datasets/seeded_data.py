"""Samples whose random numbers depend on the seed and their place in the data's order alone.

Not on the worker that reads them, nor on what was read before: a run can go on from any batch
without reading the ones before it, with another number of workers, and ranks that share a global
batch see what one process would.
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
Key = tuple[int, Place]  # index of a sample and its place


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set read by `Key`: seeds torch, NumPy and random before each sample.

    A sample that cannot be read is replaced by another one and reported, see `BadSamples`. All
    other attributes are those of the data set inside, for reading and for setting.

    Args:
        report: file for the list of samples that could not be read.
    """

    OWN = ('dataset', 'seed', 'bad_samples')

    def __init__(self, dataset: Dataset | dict, seed: int, report: Path | None = None):
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        if not hasattr(dataset, '__len__'):
            raise SetupError(
                f'{type(dataset).__name__} has no length: resumable loops need a data set that is '
                'read by index'
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
            except Exception as error:  # BadSamplesHook ends the run when there are too many
                self.bad_samples.note(index, candidate, self._path(candidate), error)

    def reseed(self, seed: int) -> None:
        """Change the seed, before workers start."""
        self.seed = self.bad_samples.seed = seed

    def _path(self, index: int) -> str | None:
        try:
            return self.dataset.get_data_info(index).get('img_path')
        except Exception:  # another kind of data set, or one that cannot tell
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
    """Batches of `Key` instead of indices, from any batch on.

    `epoch` and `start` say where the next iteration begins; it advances `epoch` and resets
    `start`. Skipped batches cost their indices only.

    Args:
        batches: config of another batch sampler to take the lists of indices from.
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
        # A generator: DataLoader calls iter() twice, and only the one it draws from may advance.
        epoch, start = self.epoch, self.start
        while True:
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            batches = self._drawn(epoch)
            skipped = sum(1 for _, _ in zip(range(start), batches, strict=False))
            if skipped == start:
                break
            if skipped == 0:
                raise ValueError('the data set gives no batch: fewer images than the batch size?')
            epoch, start = epoch + 1, start - skipped
        self.epoch, self.start = epoch + 1, 0
        yield from self._keys(batches, epoch, start)

    def _drawn(self, epoch: int) -> Iterator[list[int]]:
        """Draw the batches; a sampler that uses the global generators gets numbers of its own."""
        batches = iter(self.batches)
        for number in itertools.count():
            with generators_kept():
                seed_generators(ORDER, self.seed, epoch, number)
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _keys(self, batches: Iterator[list[int]], epoch: int, start: int) -> Iterator[list[Key]]:
        rank, world_size = get_rank(), get_world_size()
        for number, batch in enumerate(batches, start):
            first = number * self.batch_size
            # MMEngine's samplers deal the global order out to the ranks in turn.
            yield [
                (index, (epoch, (first + slot) * world_size + rank))
                for slot, index in enumerate(batch)
            ]


def seeded_loader(runner: Runner, config: dict) -> DataLoader:
    """Build a training DataLoader from its config, as MMEngine does, around a `SeededDataset`."""
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
    """Return the seed of the run, the same on all ranks."""
    own = runner._randomness_cfg.get('diff_rank_seed', False)  # MMEngine then adds the rank
    return runner.seed - get_rank() if own else runner.seed


def seed_generators(stream: int, *place: int, cuda: bool = False) -> None:
    """Seed torch's CPU generator, NumPy, random and, if asked for, all CUDA generators.

    Args:
        stream: a number of its own for each use, so that equal places draw different numbers.
    """
    # SeedSequence takes (1, 2) and (1, 2, 0) for the same: the length tells them apart.
    words = np.random.SeedSequence([stream, len(place), *place]).generate_state(4).tolist()
    torch_seed = words[0] << 32 | words[1]
    torch.default_generator.manual_seed(torch_seed)
    np.random.seed(words[2])
    random.seed(words[3])
    if cuda and torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch_seed)
