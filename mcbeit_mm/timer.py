"""Time spent in one part of a step, on CPU or CUDA, without stopping the device at every step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceTimer:
    """Adds up the seconds of `measure` blocks until `pop` reads and resets them; idle until
    `enabled` is set.

    On CUDA it records events, so only `pop` waits for the device.
    """

    def __init__(self):
        self.enabled = False
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[None]:
        """Count the time of the enclosed work on `device`."""
        if not self.enabled:
            yield
        elif device.type == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    def pop(self) -> float:
        """Seconds measured since the last `pop`."""
        if self._events:
            self._events[-1][1].synchronize()
        total = self._seconds + sum(a.elapsed_time(b) for a, b in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return total

    def __deepcopy__(self, memo: dict) -> 'DeviceTimer':
        # CUDA events cannot be copied; a copy of the model measures for itself.
        return DeviceTimer()
