"""Progress of a training run, shared with the harness through a memory-mapped file."""

import mmap
import struct
from pathlib import Path

PHASES = ('start-up', 'training', 'checkpoint writing', 'validation', 'end')
START, TRAINING, WRITING, VALIDATION, END = range(5)
FIELDS = ('phase', 'done', 'begun', 'operations')
LAYOUT = struct.Struct(f'{len(FIELDS)}q')
NOTHING = LAYOUT.pack(START, -1, -1, 0)


class State:
    """Phase; iterations done; iteration resumed from; number of operations on checkpoint files."""

    def __init__(self, path: str | Path):
        path = Path(path)
        if not path.exists():
            path.write_bytes(NOTHING)
        with open(path, 'r+b') as file:
            self._map = mmap.mmap(file.fileno(), LAYOUT.size)

    def read(self) -> dict[str, int]:
        return dict(zip(FIELDS, LAYOUT.unpack(self._map[:]), strict=True))

    def write(self, **values: int) -> None:
        self._map[:] = LAYOUT.pack(*(self.read() | values).values())
