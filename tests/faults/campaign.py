"""Kill small real training runs at random moments, resume them, compare with uninterrupted runs.

python tests/faults/campaign.py --kills 30 --seed 0 --out DIR [--markdown]

Exit code 0 if every run ends bit-identical, no damaged checkpoint is used silently and no fault
costs more iterations than there are between two checkpoints; else 1. See DIR/report.json.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch; a fork needs one thread
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import corruption
import full_disk
import launcher
from compare import compare
from fault_report import as_table, summary
from run_state import END, PHASES
from strikes import SIGNALS, SLOW_FSYNC, make_plan, order, strike
from tiny_runs import TinyRun, make_runs

FAULTS_PER_LIFE = 4
REAL = 8  # every 8th launch is a new interpreter
INTERRUPTED = 75  # saved, to be resumed
EXPECTED = {
    'abort': -signal.SIGABRT,
    'exception': 1,
    'SIGKILL of a worker': 1,
    'SIGTERM': INTERRUPTED,
    'SIGINT': INTERRUPTED,
}


@dataclass
class Launch:
    """One start of a run, and how it ended."""

    run: str
    life: int
    fault: str
    moment: str = ''
    phase: str = ''
    begun: int = -1
    done: int = -1
    lost: int = 0  # iterations to be repeated, known at the next launch
    damaged: str = ''  # files damaged before the next launch
    returncode: int | None = None
    hit: bool = False
    real: bool = False
    orphans: int = 0
    seconds: float = 0.0


@dataclass
class Life:
    """One work dir until the run is finished."""

    run: TinyRun
    number: int
    folder: Path
    reached: int = 0
    allowed: int = 0  # most iterations that may be lost
    damaged: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / 'work'


def launch(
    life: Life, fault: str, moment: str, rng: random.Random, seconds: float, real: bool
) -> Launch:
    """Start the run once; without `fault` it finishes."""
    plan, target = '', 0.0
    if fault:
        moment, plan, target = order(
            fault, moment, life.reached, life.run.iters, life.run.validates, rng
        )
        target = rng.uniform(0, seconds) if moment == 'seconds' else target
    entry = Launch(life.run.name, life.number, fault, moment, real=real)
    slow = SLOW_FSYNC if moment == 'slow writing' else 0.0
    log = life.folder / f'{len(life.launches):02d}.log'
    running = launcher.start(life.run.config, life.work, log, fault=plan, fsync=slow, real=real)
    state = strike(running, fault, moment, target, rng) if fault and not plan else None
    entry.returncode = running.wait()
    last = running.state.read()
    entry.phase = PHASES[(state or last)['phase']]
    entry.begun, entry.done = last['begun'], last['done']
    entry.orphans = running.clean_up()
    entry.seconds = time.monotonic() - running.started
    entry.hit = bool(fault) and entry.returncode != 0
    life.launches.append(entry)
    check(life, entry, log)
    return entry


def check(life: Life, entry: Launch, log: Path) -> None:
    """Record problems: exit code, iterations lost, a run that hangs."""
    where = f'{life.run.name}, life {life.number}, {log}'
    if entry.returncode is None:
        life.problems.append(f'{where}: hangs')
    expected = EXPECTED.get(entry.fault, -signal.SIGKILL) if entry.fault else 0
    early = entry.phase == PHASES[0] and entry.fault in SIGNALS  # before there is a handler
    late = entry.returncode == 0  # the fault came after the end
    if entry.returncode != expected and not (early or late):
        life.problems.append(
            f'{where}: {entry.fault or "no fault"} during {entry.phase}, exit code '
            f'{entry.returncode}, expected {expected}: {_last_line(log)}'
        )
    if entry.begun >= 0:
        lost = life.reached - entry.begun
        previous = next((x for x in reversed(life.launches[:-1]) if x.done >= 0), None)
        if previous:
            previous.lost, previous.damaged = lost, '; '.join(life.damaged)
            life.damaged = []
            if not 0 <= lost <= life.allowed:
                life.problems.append(
                    f'{where}: {lost} iterations lost after {previous.fault} during '
                    f'{previous.phase}, from {life.reached} back to {entry.begun}, damaged: '
                    f'{previous.damaged or "nothing"}'
                )
        life.reached = entry.done
        life.allowed = 0 if entry.returncode == INTERRUPTED else life.run.interval


def _last_line(log: Path) -> str:
    lines = log.read_text(errors='replace').strip().splitlines()
    return lines[-1][:300] if lines else 'no output'


def finish(life: Life, reference: Path, rng: random.Random) -> None:
    """Finish the run and compare it with the reference."""
    if not (life.launches and life.launches[-1].returncode == 0):
        launch(life, '', '', rng, 0, real=False)
    if life.launches[-1].returncode == 0:
        found = compare(life.work, reference, life.run.iters)
        life.problems += [f'{life.run.name}, life {life.number}: {line}' for line in found]


def references(runs: list[TinyRun], out: Path) -> dict[str, tuple[Path, float]]:
    """Run every variant without faults; return work dir and seconds by name."""
    done = {}
    for i, run in enumerate(runs):
        life = Life(run, -1, out / f'reference{i}')
        life.folder.mkdir()
        entry = launch(life, '', '', random.Random(0), 0, real=False)
        if entry.returncode != 0:
            raise RuntimeError(f'{run.name}: the run without faults fails: {life.problems}')
        done[run.name] = life.work, entry.seconds
        print(f'{run.name}: {run.iters} iterations without faults in {entry.seconds:.1f} s')
    return done


def kill_and_resume(
    runs: list[TinyRun], done: dict, kills: int, rng: random.Random, out: Path
) -> list[Life]:
    """Execute the plan, a few faults per life; faults that came too late are repeated."""
    plan, lives, launches = make_plan(kills, rng), [], 0
    while plan:
        run = runs[len(lives) % len(runs)]
        life = Life(run, len(lives), out / f'life{len(lives):02d}')
        life.folder.mkdir()
        lives.append(life)
        work, seconds = done[run.name]
        for _ in range(FAULTS_PER_LIFE):
            if not plan or life.reached >= run.iters:
                break
            fault, moment = plan.pop()
            launches += 1
            entry = launch(life, fault, moment, rng, seconds, real=launches % REAL == 0)
            if not entry.hit:
                plan.insert(rng.randrange(len(plan) + 1), (fault, moment))
            if entry.phase == PHASES[END] or entry.returncode == 0:
                break
            if rng.random() < 0.25:
                corruption.damage_newest(life, rng)
        finish(life, work, rng)
        state = 'identical' if not life.problems else '; '.join(life.problems)
        print(f'life {life.number:2d}, {run.name}: {len(life.launches)} launches, {state}')
    return lives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--kills', type=int, default=30, help='number of SIGKILLs that hit; other faults are added'
    )
    parser.add_argument('--corruptions', type=int, default=240, help='damaged checkpoint files')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, required=True, help='a new folder')
    parser.add_argument('--variants', type=int, nargs='*', help='numbers from 0; default all')
    parser.add_argument('--markdown', action='store_true', help='print the table as Markdown')
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True)
    # A shell ignores SIGINT in what it starts with &, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started, rng = time.monotonic(), random.Random(args.seed)
    launcher.prepare()
    runs = make_runs(args.out / 'runs')
    runs = [runs[i] for i in args.variants] if args.variants else runs
    done = references(runs, args.out)
    lives = kill_and_resume(runs, done, args.kills, rng, args.out)
    disk = full_disk.campaign(runs[0], done[runs[0].name][0], args.out / 'disk', rng)
    files = corruption.campaign(done[runs[0].name][0], args.out / 'damaged', args.corruptions, rng)
    launches = [asdict(entry) for life in lives for entry in life.launches]
    problems = [line for life in lives for line in life.problems]
    result = dict(
        seed=args.seed, seconds=time.monotonic() - started, lives=len(lives), launches=launches,
        interval=runs[0].interval, disk=disk, corruption=files,
        problems=problems + disk['problems'] + files['problems'],
    )  # fmt: skip
    result['summary'] = summary(result)
    (args.out / 'report.json').write_text(json.dumps(result, indent=1) + '\n')
    print(as_table(result, args.markdown))
    raise SystemExit(1 if result['problems'] else 0)


if __name__ == '__main__':
    main()
