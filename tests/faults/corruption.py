"""Damage checkpoint files and last_checkpoint, and check what resuming does."""

import contextlib
import io
import os
import random
import shutil
from collections import Counter
from pathlib import Path

from compare import differences, load

PAGE = 4096  # what a file system loses when power fails
NOTES = {  # contents of last_checkpoint after an accident; None: no file
    'missing': None,
    'empty': b'',
    'zeros': bytes(64),
    'no text': bytes(range(128, 192)),
    'a file that is gone': b'/no/such/folder/iter_9999.pth',
    'half a name': b'iter_',
    'a folder': b'.',
    'an older one': b'{older}',
}


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change 1 to 8 bytes anywhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(data))] ^= rng.randint(1, 255)
    return bytes(changed)


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zero_page(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(0, len(data), PAGE)
    end = min(start + PAGE, len(data))
    return data[:start] + bytes(end - start) + data[end:]


def only_zeros(data: bytes, rng: random.Random) -> bytes:
    """Right size, no content: data of a delayed allocation that never reached the disk."""
    return bytes(len(data))


KINDS = dict(
    (kind.__name__.replace('_', ' '), kind)
    for kind in (flip, flip_bit, truncate, zero_page, only_zeros)
)
OFTEN = ('flip', 'flip bit', 'truncate')


def checkpoints(work: Path) -> list[Path]:
    """Regular checkpoints and those of interruptions, oldest first."""
    files = [*work.glob('iter_*.pth'), *work.glob('interrupted_iter_*.pth')]
    return sorted(files, key=lambda file: int(file.stem.rpartition('_')[2]))


def damage_newest(life, rng: random.Random) -> None:
    """Damage the newest checkpoint of a killed run if there is another, or last_checkpoint."""
    files = checkpoints(life.work)
    note = life.work / 'last_checkpoint'
    if rng.random() < 0.3 and note.exists():
        note.write_bytes(rng.randbytes(20))
        life.damaged.append('last_checkpoint')
    elif len(files) > 1:
        kind = rng.choice(list(KINDS))
        files[-1].write_bytes(KINDS[kind](files[-1].read_bytes(), rng))
        life.damaged.append(f'{kind} of {files[-1].name}')
        life.allowed += life.run.interval


def ask(work: Path) -> tuple[Path | None, str]:
    """Return the checkpoint that `--resume` uses, and its messages."""
    from mcbeit_mm.engine.resume import checkpoint_to_resume

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            found = checkpoint_to_resume(str(work), 'auto')
        except Exception as error:
            found = None
            print(error, file=said)
    return (Path(found) if found else None), said.getvalue()


def judge(work: Path, damaged: list[Path], expected: Path | None, content: dict) -> str:
    """Return 'detected', 'harmless' or a problem for a work dir whose newest files are damaged."""
    found, said = ask(work)
    if found in damaged:
        try:
            return 'SILENT' if differences(load(found), content[found.name]) else 'harmless'
        except Exception as error:
            return f'not detected before loading it: {type(error).__name__}'
    if any(file.name not in said for file in damaged):
        return 'skipped without a message'
    return 'detected' if found == expected else f'{found} used, not {expected}'


def lay_out(work: Path, source: list[Path]) -> list[Path]:
    """Create a work dir with hard links to the files of another; they are never written to."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for file in source:
        os.link(file, work / file.name)
    (work / 'last_checkpoint').write_text(str(work / source[-1].name))
    return [work / file.name for file in source]


def campaign(work: Path, folder: Path, count: int, rng: random.Random) -> dict:
    """Test `count` damaged work dirs, mostly only the newest file, then last_checkpoint."""
    folder.mkdir()
    source = checkpoints(work)
    content = {file.name: load(file) for file in source}
    tally: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    problems = []
    for case in range(count):
        files = lay_out(folder / 'work', source)
        kind = rng.choice([*OFTEN, *OFTEN, *OFTEN, *KINDS])
        bad = files[-rng.choice([1] * 6 + [2, len(files)]) :]
        for file in bad:
            data = KINDS[kind](file.read_bytes(), rng)
            file.unlink()
            file.write_bytes(data)
        expected = files[-len(bad) - 1] if len(bad) < len(files) else None
        verdict = judge(folder / 'work', bad, expected, content)
        if verdict not in ('detected', 'harmless'):
            kept = folder / f'case{case}'
            shutil.copytree(folder / 'work', kept)
            problems.append(f'damaged file, {kind}, {len(bad)} newest, {kept}: {verdict}')
            verdict = verdict.split(':')[0] if verdict == 'SILENT' else 'wrong'
        tally[kind][verdict] += 1
    problems += damaged_notes(folder / 'work', source)
    return dict(
        cases={kind: dict(verdicts) for kind, verdicts in tally.items()},
        notes=len(NOTES), problems=problems,
        silent=sum(verdicts['SILENT'] for verdicts in tally.values()),
    )  # fmt: skip


def damaged_notes(work: Path, source: list[Path]) -> list[str]:
    """The newest checkpoint must be found whatever last_checkpoint holds."""
    problems = []
    for name, content in NOTES.items():
        files = lay_out(work, source)
        note = work / 'last_checkpoint'
        note.unlink()
        if content is not None:
            note.write_bytes(content.replace(b'{older}', os.fsencode(files[0])))
        found, said = ask(work)
        if found != files[-1]:
            problems.append(f'last_checkpoint is {name}: {found} used, not {files[-1]}: {said}')
    return problems
