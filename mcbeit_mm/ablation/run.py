"""Run an ablation: train, evaluate and fine-tune what is missing, and write the table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger

from ..config import launch
from ..engine.resume import find_checkpoint
from .plan import Run, check_agreement, find_configs, missing_steps, plan
from .table import figure, gather, markdown

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
TAIL = 15  # lines of a failed step's output


@dataclass(frozen=True)
class Steps:
    """How the steps of each run are executed; see the options of tools/ablate.py."""

    data: str
    finetune: str | None = None
    finetune_options: Sequence[str] = ()
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
        config, folder, options = str(run.config), run.folder, run.options
        if step == 'finetune':
            config, folder = self.finetune, run.folder / 'finetune'
            options = [*self.finetune_options, f'randomness.seed={run.seed}']
        words = [sys.executable, f'{TOOLS}/train.py', config]
        if self.gpus:
            words = ['bash', f'{TOOLS}/dist_train.sh', config, f'{self.gpus}']
        words += ['--work-dir', str(folder)]
        words += ['--resume'] if any(folder.glob('*.pth')) else []
        words += ['--precision', self.precision] if self.precision else []
        return [*words, '--cfg-options', *options]

    def finetune_config(self) -> Config | None:
        """Load the config of the step 'finetune', if it is asked for."""
        if not self.finetune:
            return None
        cfg = launch.load_config(self.finetune, self.finetune_options)
        if self.precision:
            launch.set_precision(cfg, self.precision)
        return cfg


def ablate(
    configs: Sequence[str],
    *,
    data: str | None,
    out: Path = Path('work_dirs/ablations'),
    seeds: Sequence[int] = (0, 1, 2),
    on: str | None = None,
    cfg_options: Sequence[str] = (),
    check: bool = False,
    table_only: bool = False,
    **steps,
) -> int:
    """Run pretraining configs x seeds, write results.json, table.md and table.png to `out`.

    Args:
        configs: files and globs.
        on: value of MCBEIT_ABLATION, the base of configs/ablations.
        check: only list what is missing.
        table_only: only tabulate; settings are not compared, so tokenizers may differ.
        steps: see `Steps`.

    Returns: exit status 0 complete, 1 runs failed or missing, 130 interrupted.
    """
    MMLogger.get_current_instance().setLevel('WARNING')  # it names variables once per config
    set_environment(data, on, check_data=not table_only)
    steps = Steps(data or '', **steps)
    runs = plan(find_configs(configs), seeds, out, cfg_options, steps.precision)
    finetune = steps.finetune_config()
    if not table_only:
        check_agreement(runs, finetune and (Path(steps.finetune), finetune))
        try:
            run_missing(runs, steps, finetune, out, check)
        except KeyboardInterrupt:
            print('\ninterrupted: rerun the same command to continue', file=sys.stderr)
            return 130
    if check:
        return 0
    results = write_results(runs, finetune, out)
    print(f'\n{(out / "table.md").read_text()}\nwritten to {out}/table.md')
    return int(any(row['missing'] for row in results['configs'].values()))


def set_environment(data: str | None, on: str | None, check_data: bool = True) -> None:
    """Set the variables that configs read; FileNotFoundError if the data is missing."""
    if on:
        os.environ['MCBEIT_ABLATION'] = on
    if data:
        os.environ['MCBEIT_DATA'] = data
    elif check_data:
        raise ValueError('no image folder: use --data ROOT or set MCBEIT_DATA')
    folders = [Path(data or '', name) for name in ('train', 'val')]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing and check_data:
        raise FileNotFoundError(f'no folder {missing[0]}: ROOT needs train/ and val/')
    if data and not missing:
        entries = [entry for entry in folders[0].iterdir() if not entry.name.startswith('.')]
        classes = sum(entry.is_dir() for entry in entries)
        os.environ.setdefault('MCBEIT_CLASSES', str(classes))


def run_missing(
    runs: Sequence[Run], steps: Steps, finetune: Config | None, out: Path, check: bool = False
) -> None:
    """Execute what runs lack, or only list it; after a failure continue with the next run."""
    for number, run in enumerate(runs, start=1):
        missing = missing_steps(run, finetune)
        title = f'[{number}/{len(runs)}] {run}'
        if check or not missing:
            print(f'{title}: {", ".join(missing) or "finished"}', flush=True)
            continue
        print(f'{title}: ', end='', flush=True)
        for step in missing:
            if problem := perform(step, run, steps):
                print(f'FAILED\n{problem}', file=sys.stderr, flush=True)
                break
        write_results(runs, finetune, out)


def perform(step: str, run: Run, steps: Steps) -> str | None:
    """Execute one step of a run; return what went wrong, if anything."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ.get("PATH", "")}'
    root = os.pathsep.join(filter(None, [str(TOOLS.parent), os.environ.get('PYTHONPATH')]))
    env = os.environ | dict(PATH=path, PYTHONPATH=root)
    try:
        if step == 'finetune':
            env['MCBEIT_WEIGHTS'] = str(find_checkpoint(run.folder))
    except FileNotFoundError as error:
        return str(error)
    command, log = steps.command(step, run), run.folder / f'{step}.out'
    print(f'{step}{" (resumed)" if "--resume" in command else ""} ...', end=' ', flush=True)
    start, offset = time.time(), log.stat().st_size if log.exists() else 0
    status = execute(command, log, env)
    print(f'{time.time() - start:.0f} s', flush=True)
    if status == 0:
        return None
    tail = log.read_bytes()[offset:].decode(errors='replace').splitlines()[-TAIL:]
    return '\n'.join([f'{step} failed with exit status {status}; the end of {log}:', *tail])


def execute(command: Sequence[str], log: Path, env: dict[str, str]) -> int:
    """Run a command, output appended to a file; an exception here ends all its processes."""
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


def write_results(runs: Sequence[Run], finetune: Config | None, out: Path) -> dict:
    """Write results.json, table.md and table.png for what has been measured so far."""
    results = gather(runs, finetune)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
    (out / 'table.md').write_text(markdown(results))
    if chart := figure(results):
        chart.savefig(out / 'table.png')
    return results
