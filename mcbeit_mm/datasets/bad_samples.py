"""Samples that cannot be read: which one is used instead, how many there are, where they lie.

For training data only: in validation and test data every sample counts, an error ends the run.
"""

import errno
import json
import os
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import SetupError
from .images import BadImageError

# These come from code or the machine, never from what a file holds: raised again at once.
PROGRAMMING_ERRORS = (
    NameError,
    AttributeError,
    TypeError,
    ImportError,
    NotImplementedError,
    MemoryError,
    SetupError,
)
# A file system that is away or a process without handles: no fault of one image.
OUTAGES = (
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM,
)  # fmt: skip
# Even of data with half of its samples bad, this many are all bad once in 2^100 cases.
CANDIDATES = 100
# A share of fewer samples says little: at the default share, 10 bad ones are expected of 1000.
MIN_COUNT = 10


class BadSamples:
    """Replaces, counts and lists the samples of a data set that cannot be read.

    Any exception means that a sample is bad, but for those of a programming error. A bug that
    raises another one strikes good samples too: it soon exceeds `limit`, which ends the run.
    The counts lie in shared memory and are of this run; the list goes on after a resume. They see
    one rank's samples: each has its own list.

    Args:
        length: samples of the data set.
        seed: the same seed gives the same replacements.
        report: file for one JSON line per bad sample: index, path, reason, instead (the index of
            its first replacement) and, where data is not the likely cause, traceback.
        max_share: largest share of bad samples, 0..1.
    """

    def __init__(
        self, length: int, seed: int, report: str | Path | None = None, max_share: float = 0.01
    ):
        self.length, self.seed = length, seed
        self.report = None if report is None else Path(report)
        self._seen = torch.zeros(length, dtype=torch.uint8).share_memory_()
        self._bad = torch.zeros(length, dtype=torch.uint8).share_memory_()
        self._max_share = torch.zeros(1, dtype=torch.float64).share_memory_()
        self.max_share = max_share
        self._start = 0  # of this run's lines in the report
        self._listed = set()
        if self.report is not None and self.report.exists():
            self._start = self.report.stat().st_size
            self._listed = {(entry['index'], entry['path']) for entry in self._entries(0)}

    @property
    def max_share(self) -> float:
        """Largest share of bad samples, 0..1; can be set while workers run."""
        return float(self._max_share)

    @max_share.setter
    def max_share(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f'max_share must lie in [0, 1], got {share}')
        self._max_share.fill_(share)

    @property
    def count(self) -> int:
        """Number of samples that this run could not read, each counted once."""
        return int(np.count_nonzero(self._bad.numpy().view(bool)))

    @property
    def seen(self) -> int:
        """Number of samples that this run has tried to read, each counted once."""
        return int(np.count_nonzero(self._seen.numpy().view(bool)))

    @property
    def limit(self) -> int:
        """Largest `count`: a share of the samples seen, at first 10, never above that of all."""
        share = self.max_share
        return int(min(share * self.length, max(MIN_COUNT, share * self.seen)))

    def candidates(self, index: int) -> Iterator[int]:
        """Give `index`, then other samples in an order that hangs on the seed and `index` alone.

        Raises:
            BadImageError: after 100 candidates, or when there are no more.
        """
        for candidate in self._order(index):
            self._seen[candidate] = 1
            yield candidate
        raise BadImageError(
            f'neither sample {index} nor any of its replacements could be read. {self._first()}'
        )

    def note(self, index: int, candidate: int, path: str | None, error: Exception) -> None:
        """Count and list a candidate for `index` that could not be read.

        Raises:
            Exception: `error` itself, if it is that of a program, not of data.
            SetupError: there are more than `limit`.
        """
        outage = isinstance(error, OSError) and error.errno in OUTAGES
        if outage or isinstance(error, PROGRAMMING_ERRORS):
            raise error
        if not self._bad[candidate] and (candidate, path) not in self._listed:
            self._listed.add((candidate, path))
            self._write(candidate, path, error)
        self._bad[candidate] = 1
        if complaint := self.complaint():
            raise SetupError(complaint) from error

    def complaint(self) -> str | None:
        """Say what is wrong if there are more than `limit`."""
        count = self.count
        if count <= self.limit:
            return None
        return (
            f'{count} of the {self.seen} training samples seen so far (of {self.length}) could not '
            f'be read, more than a share of {self.max_share:g}. They are listed in {self.report}. '
            'Repair or remove them, or set max_share of BadSamplesHook. ' + self._first()
        )

    def entries(self) -> list[dict]:
        """Return the lines that this run has added to the report."""
        return list(self._entries(self._start))

    def _order(self, index: int) -> Iterator[int]:
        yield index
        drawn = np.random.default_rng([self.seed, index]).integers(self.length, size=CANDIDATES)
        yield from list(dict.fromkeys(i for i in drawn.tolist() if i != index))[: CANDIDATES - 1]

    def _write(self, candidate: int, path: str | None, error: Exception) -> None:
        """Append one line by one write, which other processes' lines cannot split."""
        if self.report is None:
            return
        order = self._order(candidate)
        next(order)
        message = str(error).removeprefix(f'{path}: ')
        entry = dict(
            index=candidate,
            path=path,
            reason=f'{type(error).__name__}: {message}',
            instead=next(order, None),
        )
        if not isinstance(error, BadImageError | OSError):
            entry['traceback'] = ''.join(traceback.format_exception(error))
        try:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, (json.dumps(entry) + '\n').encode())
            finally:
                os.close(file)
        except OSError as failure:  # a full disk: no reason to stop for one bad image
            warnings.warn(f'{entry} is not in {self.report}: {failure}', stacklevel=2)

    def _entries(self, start: int) -> Iterator[dict]:
        if self.report is None or not self.report.exists():
            return
        with open(self.report, 'rb') as file:
            file.seek(start)
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:  # cut off by a full disk or a crash
                    continue
                if isinstance(entry, dict) and {'index', 'path', 'reason'} <= entry.keys():
                    yield entry

    def _first(self) -> str:
        entry = next(self._entries(self._start), None)
        if entry is None:
            return 'The list says no more.'
        place = entry['path'] or f'sample {entry["index"]}'
        return f'The first: {place}: {entry["reason"]}\n{entry.get("traceback", "")}'.rstrip()
