"""Run the whole toolkit on the embedded data: tokenizer, pretraining, three transfers, report.

python tools/demo.py [--out work_dirs/demo] [--data data/demo]

It starts the other tools, as one would by hand; their output is in OUT/STAGE.log.
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
STAGES = {  # name -> minutes on 2 CPU cores with AMX, what it does
    'data': (0.3, 'handwritten digits on photographs'),
    'tokenizer': (1.7, 'a small Gumbel VQGAN learns the visual vocabulary'),
    'pretrain': (4.5, 'a small ViT predicts masked patches (mc-BEiT)'),
    'evaluate': (0.7, 'k-NN and linear probe of frozen features, pretrained and random'),
    'classification': (1.7, 'which digit an image shows'),
    'segmentation': (1.5, 'the digit of every pixel (UperNet)'),
    'detection': (2.1, 'boxes and masks of all digits (Mask R-CNN)'),
    'report': (0.5, 'tables, curves and pictures'),
}
TASKS = ('classification', 'segmentation', 'detection')
FP32_TIME = 2.1  # in fp32 the stages took 27 minutes instead of 13
PROGRESS = re.compile(r'(Epoch|Iter)\((train|val)\).*')  # of MMEngine's log, without its head


def precision(cpu: Path = Path('/proc/cpuinfo')) -> str:
    """bf16 where the hardware multiplies it (a GPU, or a CPU with AMX), else fp32."""
    import torch

    fast = torch.cuda.is_available() or (cpu.is_file() and 'amx_bf16' in cpu.read_text())
    return 'bf16' if fast else 'fp32'


def commands(out: Path, data: Path, precision: str) -> dict[str, dict[str, list]]:
    """Words of the commands by stage and label; those of a stage run side by side."""

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
    """Variables of a stage's configs."""
    return dict(
        MCBEIT_DATA=f'{data}/{stage if stage in TASKS else "classification"}',
        MCBEIT_TOKENIZER=f'{out}/tokenizer/tokenizer',
        MCBEIT_WEIGHTS=f'{out}/pretrain',
        PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))),
        PYTHONUNBUFFERED='1',
    )


def run(stage: str, commands: dict[str, list], env: dict[str, str], out: Path) -> None:
    """Run commands side by side, sharing the cores; SystemExit at the first that fails."""
    if len(commands) > 1:  # more threads than cores would wait for each other
        env = env | dict(OMP_NUM_THREADS=str(max(1, os.cpu_count() // len(commands))))
    jobs = []
    with ThreadPoolExecutor(len(commands)) as pool:
        try:
            followed = {}
            for label, (tool, *arguments) in commands.items():
                log = out / f'{"-".join(filter(None, (stage, label)))}.log'
                command = [sys.executable, ROOT / 'tools' / tool, *arguments]
                pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                jobs.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipe))
                followed[pool.submit(follow, jobs[-1], label, log, tool == 'train.py')] = log
            for ended in as_completed(followed):
                if ended.result():
                    log = followed[ended]
                    tail = '\n'.join(log.read_text().splitlines()[-15:])
                    raise SystemExit(f'{tail}\nstage {stage!r} failed; its full output: {log}')
        finally:
            for job in jobs:
                job.kill()


def follow(job: subprocess.Popen, label: str, log: Path, training: bool) -> int:
    """Copy a command's output to its log and the terminal, there only the progress of training."""
    with log.open('w') as file:
        for line in job.stdout:
            file.write(line)
            shown = PROGRESS.search(line) if training else line.rstrip()
            if shown:
                text = shown[0] if training else shown
                print('   ', f'{label}: {text}' if label else text, flush=True)
    return job.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='results')
    parser.add_argument('--data', type=Path, default=Path('data/demo'), help='generated data')
    args = parser.parse_args()
    out, data = args.out.resolve(), args.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen, start = precision(), time.monotonic()
    left = sum(minutes for minutes, _ in STAGES.values()) * (1 if chosen == 'bf16' else FP32_TIME)
    for number, (stage, words) in enumerate(commands(out, data, chosen).items(), 1):
        minutes, what = STAGES[stage]
        print(f'[{number}/{len(STAGES)}] {stage}: {what} (about {left:.0f} min left)', flush=True)
        begin = time.monotonic()
        run(stage, words, environment(stage, out, data), out)
        print(f'    done in {time.monotonic() - begin:.0f} s')
        left -= minutes * (1 if chosen == 'bf16' else FP32_TIME)
    print(f'Finished in {(time.monotonic() - start) / 60:.1f} min. Open {out}/report.html')


if __name__ == '__main__':
    main()
