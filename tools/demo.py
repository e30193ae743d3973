"""Run the whole toolkit on the embedded data: tokenizer, pretraining, three transfers, report.

python tools/demo.py [--out work_dirs/demo] [--data data/demo]

Takes 11 to 27 minutes on 2 CPU cores, depending on their age. Each stage runs other tools; their
output is in OUT/STAGE.log.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    'data': 'handwritten digits on photographs',
    'tokenizer': 'a small Gumbel VQGAN learns the visual vocabulary',
    'pretrain': 'a small ViT predicts masked patches (mc-BEiT)',
    'evaluate': 'k-NN and linear probe of frozen features, pretrained and random',
    'classification': 'which digit an image shows',
    'segmentation': 'the digit of every pixel (UperNet)',
    'detection': 'boxes and masks of all digits (Mask R-CNN)',
    'report': 'tables, curves and pictures',
}
TASKS = ('classification', 'segmentation', 'detection')
PROGRESS = re.compile(r'(Epoch|Iter)\((train|val)\).*')  # in MMEngine's log


def precision(cpu: Path = Path('/proc/cpuinfo')) -> str:
    """Return bf16 where the hardware supports it (a GPU, or a CPU with AMX), else fp32."""
    import torch

    fast = torch.cuda.is_available() or (cpu.is_file() and 'amx_bf16' in cpu.read_text())
    return 'bf16' if fast else 'fp32'


def commands(out: Path, data: Path, precision: str) -> dict[str, dict[str, list]]:
    """Return the commands by stage and label; those of a stage run side by side."""

    def train(config: str, run: str, *options: str) -> list:
        config = ROOT / f'configs/demo/{config}_demo.py'
        return ['train.py', '--precision', precision, config, '--work-dir', out / run, *options]

    pretrain, scores = out / 'pretrain', out / 'features.json'
    evaluate = ['evaluate_features.py', pretrain, '--random-init', '--max-train', '1000']
    report = ['report.py', pretrain, '--features', scores, '--tokenizer-dir', out / 'tokenizer']
    transfers = {}
    for task in TASKS:
        config, options = f'mcbeit_vit-micro-p16_{task}', ['model.backbone.init_cfg=None']
        transfers[task] = dict(
            pretrained=train(config, task),
            scratch=train(config, f'{task}-scratch', '--cfg-options', *options),
        )
        report += ['--transfer', out / task, out / f'{task}-scratch']
    return {
        'data': {'': ['make_demo_data.py', '--out', data]},
        'tokenizer': {'': train('tokenizer_gumbel-f8-256', 'tokenizer')},
        'pretrain': {'': train('mcbeit_vit-micro-p16', 'pretrain')},
        'evaluate': {'': [*evaluate, '--out', scores]},
        **transfers,
        'report': {'': [*report, '--out', out / 'report.html']},
    }


def environment(stage: str, out: Path, data: Path) -> dict[str, str]:
    """Return the environment variables of a stage."""
    return dict(
        MCBEIT_DATA=f'{data}/{stage if stage in TASKS else "classification"}',
        MCBEIT_TOKENIZER=f'{out}/tokenizer/tokenizer',
        MCBEIT_WEIGHTS=f'{out}/pretrain',
        PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))),
        PYTHONUNBUFFERED='1',
    )


def run(stage: str, commands: dict[str, list], env: dict[str, str], out: Path) -> None:
    """Run commands side by side, sharing the cores; SystemExit at the first that fails."""
    if len(commands) > 1:  # do not oversubscribe the cores
        env = env | dict(OMP_NUM_THREADS=str(max(1, os.cpu_count() // len(commands))))
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    jobs, logs = [], {}
    with ThreadPoolExecutor(len(commands)) as pool:
        try:
            for label, (tool, *arguments) in commands.items():
                log = out / (f'{stage}-{label}.log' if label else f'{stage}.log')
                command = [sys.executable, ROOT / 'tools' / tool, *arguments]
                jobs.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipe))
                logs[pool.submit(follow, jobs[-1], label, log, tool == 'train.py')] = log
            for ended in as_completed(logs):
                if ended.result():
                    tail = '\n'.join(logs[ended].read_text().splitlines()[-15:])
                    raise SystemExit(f'{tail}\nstage {stage!r} failed; full output: {logs[ended]}')
        finally:
            for job in jobs:
                job.kill()


def follow(job: subprocess.Popen, label: str, log: Path, training: bool) -> int:
    """Copy a command's output to its log and the terminal, there only the progress of training."""
    head = f'    {label}: ' if label else '    '
    with log.open('w') as file:
        for line in job.stdout:
            file.write(line)
            progress = PROGRESS.search(line)
            if progress or not training:
                print(head + (progress[0] if training else line.rstrip()), flush=True)
    return job.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='results')
    parser.add_argument('--data', type=Path, default=Path('data/demo'), help='generated data')
    args = parser.parse_args()
    out, data = args.out.resolve(), args.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for index, (stage, words) in enumerate(commands(out, data, precision()).items(), 1):
        minutes = (time.monotonic() - start) / 60
        print(f'[{index}/{len(STAGES)}, {minutes:.1f} min] {stage}: {STAGES[stage]}', flush=True)
        run(stage, words, environment(stage, out, data), out)
    print(f'Finished in {(time.monotonic() - start) / 60:.1f} min. Open {out}/report.html')


if __name__ == '__main__':
    main()
