"""Pretrain configs x seeds, evaluate their features, and compare them in a table.

python tools/ablate.py 'configs/ablations/omega-*.py' configs/ablations/baseline.py --data ROOT
    [--on photos] [--seeds 0 1 2] [--out work_dirs/ablations] [--cfg-options key=value ...]

Runs what is missing, one run after the other, all configs of a seed before the next seed; a run
lies in OUT/<config>/seed<k>. Ctrl-C is no loss: the same command goes on from the last checkpoint.
OUT/table.md, results.json and table.png are written after every run. Exit status: 0 complete,
1 runs failed or missing, 2 wrong usage.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('configs', nargs='+', help='pretraining configs or quoted globs; baseline comes first')
    add(
        '--data',
        default=os.environ.get('MCBEIT_DATA'),
        metavar='ROOT',
        help='folder with train/ (pretrained on) and val/, a folder per class; default MCBEIT_DATA',
    )
    add('--out', type=Path, default=Path('work_dirs/ablations'), help='default: %(default)s')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    add('--on', choices=('in1k', 'photos'), help='base of configs/ablations: sets MCBEIT_ABLATION')
    add('--finetune', metavar='CONFIG', help='classification config to run from each result')
    add('--finetune-options', nargs='+', metavar='KEY=VALUE', default=[], help='its overrides')
    add('--max-train', type=int, help='use that many training images to evaluate features')
    add('--bf16', action='store_true', help='extract features under bfloat16 autocast')
    add('--precision', choices=('fp32', 'fp16', 'bf16'), help="of training; default: the config's")
    add('--gpus', type=int, help='train through tools/dist_train.sh on that many')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    add('--check', action='store_true', help='only list what would be run')
    add('--table-only', action='store_true', help='only tabulate what there is')
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> None:
    """Set the variables that configs read; FileNotFoundError if the data is not there."""
    if args.on:
        os.environ['MCBEIT_ABLATION'] = args.on
    if args.data:
        os.environ['MCBEIT_DATA'] = args.data
    elif not args.table_only:
        raise ValueError('no image folder: give --data ROOT or set MCBEIT_DATA')
    folders = [Path(args.data or '', name) for name in ('train', 'val')]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing and not args.table_only:
        raise FileNotFoundError(f'no folder {missing[0]}: ROOT needs train/ and val/')
    if args.data and not missing:
        entries = [entry for entry in folders[0].iterdir() if not entry.name.startswith('.')]
        classes = sum(entry.is_dir() for entry in entries)
        os.environ.setdefault('MCBEIT_CLASSES', str(classes))


def command_for(step: str, run, args: argparse.Namespace) -> list[str]:
    """Command line of a step; the arguments of training make it resume if it can."""
    if step == 'evaluate':
        words = [sys.executable, f'{TOOLS}/evaluate_features.py', f'{run.folder}']
        words += ['--data', args.data, '--out', f'{run.folder}/features.json']
        words += ['--max-train', f'{args.max_train}'] if args.max_train else []
        return [*words, '--bf16'] if args.bf16 else words
    config, folder, options = str(run.config), run.folder, run.options
    if step == 'finetune':
        config, folder = args.finetune, run.folder / 'finetune'
        options = [*args.finetune_options, f'randomness.seed={run.seed}']
    words = [sys.executable, f'{TOOLS}/train.py', config]
    if args.gpus:
        words = ['bash', f'{TOOLS}/dist_train.sh', config, f'{args.gpus}']
    words += ['--work-dir', str(folder)]
    words += ['--resume'] if list(folder.glob('*.pth')) else []
    words += ['--precision', args.precision] if args.precision else []
    return [*words, '--cfg-options', *options]


def execute(command: list[str], log: Path, env: dict[str, str]) -> int:
    """Run a command, output to a file; whatever interrupts us ends all its processes."""
    with log.open('a') as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise


def perform(step: str, run, args: argparse.Namespace) -> str | None:
    """Do one step of a run; return what went wrong, if anything."""
    from mcbeit_mm.engine import resume

    run.folder.mkdir(parents=True, exist_ok=True)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ.get("PATH", "")}'
    root = os.pathsep.join(filter(None, [str(TOOLS.parent), os.environ.get('PYTHONPATH')]))
    env = os.environ | dict(PATH=path, PYTHONPATH=root)
    try:
        if step == 'finetune':
            env['MCBEIT_WEIGHTS'] = str(resume.find_checkpoint(run.folder))
    except FileNotFoundError as error:
        return str(error)
    command, log = command_for(step, run, args), run.folder / f'{step}.out'
    print(f'{step}{" (resumed)" if "--resume" in command else ""} ...', end=' ', flush=True)
    start, offset = time.time(), log.stat().st_size if log.exists() else 0
    status = execute(command, log, env)
    print(f'{time.time() - start:.0f} s', flush=True)
    if status == 0:
        return None
    tail = log.read_bytes()[offset:].decode(errors='replace').splitlines()[-15:]
    return '\n'.join([f'{step} failed with exit status {status}; the end of {log}:', *tail])


def write_results(runs: list, finetune, out: Path) -> dict:
    from mcbeit_mm.ablation import table as ablation_table

    results = ablation_table.gather(runs, finetune)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
    (out / 'table.md').write_text(ablation_table.markdown(results))
    figure = ablation_table.figure(results)
    if figure:
        figure.savefig(out / 'table.png')
    return results


def run_all(runs: list, finetune, args: argparse.Namespace) -> list[str]:
    """Do what is missing; return the runs that failed."""
    from mcbeit_mm.ablation.plan import missing_steps

    failed = []
    for number, run in enumerate(runs, start=1):
        steps = missing_steps(run, finetune)
        title = f'[{number}/{len(runs)}] {run}'
        if args.check or not steps:
            print(f'{title}: {", ".join(steps) or "finished"}', flush=True)
            continue
        print(f'{title}: ', end='', flush=True)
        for step in steps:
            if problem := perform(step, run, args):
                print(f'FAILED\n{problem}', file=sys.stderr, flush=True)
                failed.append(str(run))
                break
        write_results(runs, finetune, args.out)
    return failed


def ablate(args: argparse.Namespace) -> int:
    from mmengine.logging import MMLogger

    from mcbeit_mm.ablation import plan as ablation
    from mcbeit_mm.config import launch

    MMLogger.get_current_instance().setLevel('WARNING')  # it names variables once per config
    prepare(args)
    configs = ablation.find_configs(args.configs)
    runs = ablation.plan(configs, args.seeds, args.out, args.cfg_options, args.precision)
    finetune = None
    if args.finetune:
        finetune = launch.load_config(args.finetune, args.finetune_options)
        if args.precision:
            launch.set_precision(finetune, args.precision)
    if not args.table_only:  # which is how runs with different tokenizers get into one table
        ablation.check_agreement(runs, finetune and (Path(args.finetune), finetune))
    failed = [] if args.table_only else run_all(runs, finetune, args)
    if args.check:
        return 0
    results = write_results(runs, finetune, args.out)
    print(f'\n{(args.out / "table.md").read_text()}\nwritten to {args.out}/table.md')
    if failed:
        print(f'{len(failed)} runs failed: {"; ".join(failed)}', file=sys.stderr)
    return int(any(row['missing'] for row in results['configs'].values()))


def stop(*_) -> None:
    raise KeyboardInterrupt


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import (
        launch,  # heavy imports come after parsing, so that --help answers at once
    )

    signal.signal(signal.SIGTERM, stop)
    try:
        with launch.one_line_errors(ValueError, FileNotFoundError):
            raise SystemExit(ablate(args))
    except KeyboardInterrupt:
        print('\ninterrupted: the same command goes on from the last checkpoint', file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == '__main__':
    main()
