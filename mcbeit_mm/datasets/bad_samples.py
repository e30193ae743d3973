"""Replace, count and list training samples that cannot be read.

For training only: a bad validation or test sample ends the run.
"""

import errno
import json
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import SetupError
from .images import BadImageError

# Caused by code or the machine, never by a file's content: re-raised at once.
PROGRAMMING_ERRORS = (
    NameError,
    AttributeError,
    TypeError,
    ImportError,
    NotImplementedError,
    MemoryError,
    SetupError,
)
# The file system is away or the process is out of handles: not the fault of one image.
OUTAGES = (
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM,
)  # fmt: skip
# With half of all samples bad, this many in a row are bad with probability 2^-100.
CANDIDATES = 100
# The default share allows 10 bad samples in 1,000; a share of fewer samples is too noisy.
MIN_COUNT = 10


class BadSamples:
    """Replaces, counts and lists the samples of a data set that cannot be read.

    Any exception but a programming error marks a sample as bad. A bug that raises another one
    strikes good samples too and soon exceeds `limit`, which ends the run. Counts live in shared
    memory and start at 0 in each run; the list continues after a resume. Each rank has its own.

    Args:
        length: number of samples in the data set.
        seed: determines the replacements.
        report: file with one JSON line per bad sample: index, path, reason, instead (index of its
            first replacement) and, unless the data is the likely cause, traceback.
        max_share: largest share of bad samples, 0..1.
    """

    def __init__(
        self, length: int, seed: int, report: str | Path | None = None, max_share: float = 0.01
    ):
        if not 0 <= max_share <= 1:
            raise ValueError(f'max_share must be in [0, 1], got {max_share}')
        self.length, self.seed, self.max_share = length, seed, max_share
        self.report = None if report is None else Path(report)
        self._seen = torch.zeros(length, dtype=torch.uint8).share_memory_()
        self._bad = torch.zeros(length, dtype=torch.uint8).share_memory_()
        self._start = 0  # where this run's lines start in the report
        self._listed = {(entry['index'], entry['path']) for entry in self.entries()}
        if self.report is not None and self.report.exists():
            self._start = self.report.stat().st_size

    @property
    def count(self) -> int:
        """Number of distinct samples that this run could not read."""
        return int(np.count_nonzero(self._bad.numpy()))

    @property
    def seen(self) -> int:
        """Number of distinct samples that this run has tried to read."""
        return int(np.count_nonzero(self._seen.numpy()))

    @property
    def limit(self) -> int:
        """Largest `count`: a share of the samples seen, at least 10, at most the share of all."""
        share = self.max_share
        return int(min(share * self.length, max(MIN_COUNT, share * self.seen)))

    def candidates(self, index: int) -> Iterator[int]:
        """Yield `index`, then replacements in an order that depends only on seed and `index`.

        Raises:
            BadImageError: after 100 candidates, or when there are no more.
        """
        for candidate in self._order(index):
            self._seen[candidate] = 1
            yield candidate
        raise BadImageError(
            f'neither sample {index} nor any of its replacements could be read. {self._first()}'
        )

    def note(self, candidate: int, path: str | None, error: Exception) -> None:
        """Count and list a candidate that could not be read.

        Raises:
            Exception: `error` itself, if the program or the machine caused it.
            SetupError: more than `limit` samples are bad.
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
        """Return an error message if there are more than `limit` bad samples."""
        if (count := self.count) <= self.limit:
            return None
        return (
            f'{count} of the {self.seen} training samples seen so far (of {self.length}) could not '
            f'be read, more than a share of {self.max_share:g}. They are listed in {self.report}. '
            f'Repair or remove them, or raise max_share of BadSamplesHook. {self._first()}'
        )

    def entries(self) -> list[dict]:
        """Return the lines that this run has added to the report."""
        if self.report is None or not self.report.exists():
            return []
        found = []
        for line in self.report.read_bytes()[self._start :].splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a full disk or a crash
                continue
            if isinstance(entry, dict) and {'index', 'path', 'reason'} <= entry.keys():
                found.append(entry)
        return found

    def _order(self, index: int) -> Iterator[int]:
        yield index
        drawn = np.random.default_rng([self.seed, index]).integers(self.length, size=CANDIDATES)
        yield from list(dict.fromkeys(i for i in drawn.tolist() if i != index))[: CANDIDATES - 1]

    def _write(self, index: int, path: str | None, error: Exception) -> None:
        if self.report is None:
            return
        reason = f'{type(error).__name__}: {str(error).removeprefix(f"{path}: ")}'
        instead = next((i for i in self._order(index) if i != index), None)
        entry = dict(index=index, path=path, reason=reason, instead=instead)
        if not isinstance(error, BadImageError | OSError):
            entry['traceback'] = ''.join(traceback.format_exception(error))
        try:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            with open(self.report, 'ab', buffering=0) as file:
                # One write per line: lines of other processes cannot interleave.
                file.write((json.dumps(entry) + '\n').encode())
        except OSError as failure:  # a full disk is no reason to stop for one bad image
            warnings.warn(f'could not add {entry} to {self.report}: {failure}', stacklevel=2)

    def _first(self) -> str:
        if not (entries := self.entries()):
            return 'None of them is listed.'
        entry = entries[0]
        sample = entry['path'] or f'sample {entry["index"]}'
        return f'The first: {sample}: {entry["reason"]}\n{entry.get("traceback", "")}'.rstrip()
