"""Run an ablation: train, evaluate and fine-tune what is missing, then write the table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.logging import MMLogger

from ..engine.resume import find_checkpoint
from .plan import Run, check_agreement, find_configs, plan
from .table import figure, gather, markdown

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
TAIL = 15  # lines of a failed step's output


@dataclass(frozen=True)
class Steps:
    """How to execute the steps of a run; for the fields see tools/ablate.py --help."""

    data: str
    max_train: int | None = None
    bf16: bool = False
    precision: str | None = None
    gpus: int | None = None

    def command(self, step: str, run: Run) -> list[str]:
        """Return the command line of a step; training resumes if there is a checkpoint."""
        if step == 'evaluate':
            words = [sys.executable, f'{TOOLS}/evaluate_features.py', f'{run.folder}']
            words += ['--data', self.data, '--out', f'{run.folder}/features.json']
            words += ['--max-train', f'{self.max_train}'] if self.max_train else []
            return [*words, '--bf16'] if self.bf16 else words
        if step == 'finetune':
            run = run.finetune
        words = [sys.executable, f'{TOOLS}/train.py', f'{run.config}']
        if self.gpus:
            words = ['bash', f'{TOOLS}/dist_train.sh', f'{run.config}', f'{self.gpus}']
        words += ['--work-dir', f'{run.folder}', '--resume']
        words += ['--precision', self.precision] if self.precision else []
        return [*words, '--cfg-options', *run.options]


def ablate(
    configs: Sequence[str],
    *,
    data: str | None,
    out: Path = Path('work_dirs/ablations'),
    seeds: Sequence[int] = (0, 1, 2),
    on: str | None = None,
    cfg_options: Sequence[str] = (),
    precision: str | None = None,
    finetune: str | None = None,
    finetune_options: Sequence[str] = (),
    check: bool = False,
    table_only: bool = False,
    **steps,
) -> int:
    """Run pretraining configs x seeds; write results.json, table.md and table.png to `out`.

    Args:
        configs: files and globs.
        data: image folder with train/ and val/; may be None with `table_only`.
        on: value of MCBEIT_ABLATION, the base of configs/ablations.
        finetune: config to fine-tune each result with.
        check: only list what is missing.
        table_only: only tabulate; settings are not compared, so tokenizers may differ.
        steps: fields of `Steps`.

    Returns:
        Exit status: 0 complete, 1 runs failed or missing, 130 interrupted.
    """
    MMLogger.get_current_instance().setLevel('WARNING')  # hides a line per environment variable
    if on:
        os.environ['MCBEIT_ABLATION'] = on
    if not table_only:
        set_data(data)
    found = find_configs(configs)
    runs = plan(found, seeds, out, cfg_options, precision, finetune, finetune_options)
    if not table_only:
        check_agreement(runs)
        try:
            run_missing(runs, Steps(data, precision=precision, **steps), out, check)
        except KeyboardInterrupt:
            print('\ninterrupted: rerun the same command to continue', file=sys.stderr)
            return 130
    if check:
        return 0
    results = write_results(runs, out)
    print(f'\n{(out / "table.md").read_text()}\nwritten to {out}/table.md')
    return int(any(row['missing'] for row in results['configs'].values()))


def set_data(data: str | None) -> None:
    """Set the environment variables that tell configs the image folder and number of classes."""
    if not data:
        raise ValueError('no image folder: use --data ROOT or set MCBEIT_DATA')
    for name in ('train', 'val'):
        if not Path(data, name).is_dir():
            raise FileNotFoundError(f'no folder {data}/{name}: ROOT needs train/ and val/')
    os.environ['MCBEIT_DATA'] = data
    folders = [path for path in Path(data, 'train').glob('[!.]*') if path.is_dir()]
    os.environ.setdefault('MCBEIT_CLASSES', str(len(folders)))


def run_missing(runs: Sequence[Run], steps: Steps, out: Path, check: bool = False) -> None:
    """Execute what runs lack, or only list it; after a failure continue with the next run."""
    for number, run in enumerate(runs, start=1):
        missing = run.missing
        title = f'[{number}/{len(runs)}] {run.name}, seed {run.seed}'
        if check or not missing:
            print(f'{title}: {", ".join(missing) or "finished"}', flush=True)
            continue
        print(f'{title}: ', end='', flush=True)
        try:
            for step in missing:
                perform(step, run, steps)
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            print(f'FAILED\n{error}', file=sys.stderr, flush=True)
        write_results(runs, out)


def perform(step: str, run: Run, steps: Steps) -> None:
    """Execute one step of a run; RuntimeError with the end of its output if it fails."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ.get("PATH", "")}'
    env = os.environ | dict(PATH=path)  # dist_train.sh calls `python`
    if step == 'finetune':
        env['MCBEIT_WEIGHTS'] = str(find_checkpoint(run.folder))
    command, log = steps.command(step, run), run.folder / f'{step}.out'
    print(f'{step} ...', end=' ', flush=True)
    start = time.time()
    status = execute(command, log, env)
    print(f'{time.time() - start:.0f} s', flush=True)
    if status:
        tail = log.read_text(errors='replace').splitlines()[-TAIL:]
        title = f'{step} failed with exit status {status}; the end of {log}:'
        raise RuntimeError('\n'.join([title, *tail]))


def execute(command: Sequence[str], log: Path, env: dict[str, str]) -> int:
    """Run a command and append its output to a file; an exception ends all its processes."""
    with log.open('a') as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # training saves, then exits
            process.wait()
            raise


def write_results(runs: Sequence[Run], out: Path) -> dict:
    """Write results.json, table.md and table.png for what has been measured so far."""
    results = gather(runs)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
    (out / 'table.md').write_text(markdown(results))
    if chart := figure(results):
        chart.savefig(out / 'table.png')
    return results
