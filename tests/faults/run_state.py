"""Where a training run is, told through a file that it and the harness map."""

import mmap
import struct
from pathlib import Path

PHASES = ('start-up', 'training', 'checkpoint writing', 'validation', 'end')
START, TRAINING, WRITING, VALIDATION, END = range(5)
FIELDS = ('phase', 'done', 'begun', 'operations')
LAYOUT = struct.Struct(f'{len(FIELDS)}q')
NOTHING = LAYOUT.pack(START, -1, -1, 0)


class State:
    """Phase; iterations done; iteration gone on from; operations on checkpoint files so far."""

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
