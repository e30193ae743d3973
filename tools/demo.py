"""Run the whole toolkit on the embedded data: tokenizer, pretraining, three transfers, report.

python tools/demo.py [--out work_dirs/demo] [--data data/demo]
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
STEP = re.compile(
    r'(?P<mode>Epoch|Iter)\((?P<split>train|val)\)\s+'
    r'(\[\s*(?P<epoch>\d+)\]\s*)?\[\s*(?P<step>\d+)/\s*(?P<of>\d+)\]'
)
SHOWN = ('eta', 'loss', 'rec', 'psnr', 'codebook_usage', 'kl', 'mlm_acc', 'knn_top1')
SHOWN += ('top1', 'mIoU', 'bbox_mAP', 'segm_mAP', 'images_per_s')
FP32_TIME = 2.1  # times the stages' minutes: 27 were measured where their sum says 13
TRANSFERS = {  # task -> config, minutes, what it learns
    'classification': (1.7, 'which digit an image shows'),
    'segmentation': (1.5, 'the digit of every pixel (UperNet)'),
    'detection': (2.1, 'boxes and masks of all digits (Mask R-CNN)'),
}


@dataclass
class Stage:
    """Commands of the demo that run side by side, by name, and what they need to know."""

    name: str
    what: str
    commands: dict[str, list[str]]
    minutes: float  # on 2 CPU cores with AMX, for the estimate of what is left
    env: dict[str, str] = field(default_factory=dict)

    def log(self, out: Path, label: str) -> Path:
        """Return where the output of a command goes."""
        return out / f'{"-".join(filter(None, (self.name, label)))}.log'


def precision(cpu: Path = Path('/proc/cpuinfo')) -> str:
    """bf16 where the processor multiplies it in hardware (a GPU, or a CPU with AMX), else fp32."""
    import torch

    fast = torch.cuda.is_available() or (cpu.is_file() and 'amx_bf16' in cpu.read_text())
    return 'bf16' if fast else 'fp32'


def stages(out: Path, data: Path, precision: str) -> list[Stage]:
    """The commands, in order; each could be typed by hand."""
    tokenizer, pretrain, scores = out / 'tokenizer', out / 'pretrain', out / 'features.json'
    demo, train = ROOT / 'configs/demo', ['train.py', '--precision', precision]
    pretrain_config = demo / 'mcbeit_vit-micro-p16_demo.py'
    env = dict(
        MCBEIT_DATA=f'{data}/classification',
        MCBEIT_TOKENIZER=f'{tokenizer}/tokenizer',
        MCBEIT_WEIGHTS=f'{pretrain}',
    )

    def stage(name: str, minutes: float, what: str, words: list) -> Stage:
        return Stage(name, what, {'': [str(word) for word in words]}, minutes, env)

    report = ['report.py', pretrain, '--features', scores, '--tokenizer-dir', tokenizer]
    report += ['--max-val', 100]  # of 400, to save time
    transfers = []
    for task, (minutes, what) in TRANSFERS.items():
        runs = [out / task, out / f'{task}-scratch']
        words = [*train, f'{demo}/mcbeit_vit-micro-p16_{task}_demo.py', '--work-dir']
        commands = {
            'pretrained': [*words, f'{runs[0]}'],
            'scratch': [*words, f'{runs[1]}', '--cfg-options', 'model.backbone.init_cfg=None'],
        }
        task_env = env | dict(MCBEIT_DATA=f'{data}/{task}')
        transfers.append(Stage(task, what, commands, minutes, task_env))
        report += ['--transfer', *runs]
    return [
        stage(
            'data', 0.3, 'handwritten digits on photographs', ['make_demo_data.py', '--out', data]
        ),
        stage(
            'tokenizer',
            1.7,
            'a small Gumbel VQGAN learns the visual vocabulary',
            [*train, demo / 'tokenizer_gumbel-f8-256_demo.py', '--work-dir', tokenizer],
        ),
        stage(
            'pretrain',
            4.5,
            'a small ViT predicts masked patches (mc-BEiT)',
            [*train, pretrain_config, '--work-dir', pretrain],
        ),
        stage(
            'evaluate',
            0.7,
            'k-NN and linear probe of frozen features, pretrained and random',
            [
                'evaluate_features.py',
                pretrain,
                '--random-init',
                '--max-train',
                1000,
                '--out',
                scores,
            ],
        ),
        *transfers,
        stage(
            'report', 0.5, 'tables, curves and pictures', [*report, '--out', out / 'report.html']
        ),
    ]


def short(line: str) -> str | None:
    """Cut a line of MMEngine's training log to what a newcomer wants; None for other lines."""
    match = STEP.search(line)
    if not match:
        return None
    epoch = f'epoch {match["epoch"]}, ' if match['epoch'] and match['split'] == 'train' else ''
    kind = 'step' if match['split'] == 'train' else 'validation'
    place = f'{epoch}{kind} {match["step"]}/{match["of"]}'
    values = dict(re.findall(r'(\w+): (\S+)', line))
    if 'kl' in values or 'rec' in values:  # they say more
        values.pop('loss', None)
    return '  '.join([place, *(f'{key} {values[key]}' for key in SHOWN if key in values)])


class Progress:
    """What the commands of a stage say, on one line of a terminal, else line by line."""

    def __init__(self, labels: list[str], training: bool):
        self.latest = dict.fromkeys(labels, '')
        self.training, self.live = training, training and sys.stdout.isatty()

    def tell(self, label: str, line: str) -> None:
        """Take in one line of output."""
        text = short(line) if self.training else line.rstrip()
        if not text:
            return
        self.latest[label] = f'{label}: {text}' if label else text
        if self.live:
            width = 110 // len(self.latest)
            parts = (f'{text[:width]:{width}}' for text in self.latest.values())
            print(f'\r\033[K    {" | ".join(parts).rstrip()}', end='', flush=True)
        else:
            print(f'    {self.latest[label]}', flush=True)

    def end(self) -> None:
        """Leave the line that was written over again and again."""
        if self.live:
            print()


def run(stage: Stage, out: Path) -> None:
    """Run the commands of a stage side by side, sharing the cores; the first failure ends all."""
    env = os.environ | stage.env
    if len(stage.commands) > 1:  # more threads than cores would wait for each other
        env |= dict(OMP_NUM_THREADS=str(max(1, os.cpu_count() // len(stage.commands))))
    jobs = {}
    for label, (tool, *arguments) in stage.commands.items():
        command = [sys.executable, f'{ROOT}/tools/{tool}', *arguments]
        with stage.log(out, label).open('w') as log:
            jobs[label] = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
            )
    try:
        _watch(stage, out, jobs)
    finally:
        for job in jobs.values():
            job.kill()
            job.wait()


def _watch(stage: Stage, out: Path, jobs: dict[str, subprocess.Popen]) -> None:
    """Follow the logs until all jobs have ended well; SystemExit at the first that fails."""
    training = all(command[0] == 'train.py' for command in stage.commands.values())
    progress = Progress(list(jobs), training)
    logs = {label: stage.log(out, label).open() for label in jobs}
    running = True
    while running:
        running = any(job.poll() is None for job in jobs.values())  # asked before the last reading
        for label, log in logs.items():
            for line in _whole_lines(log):
                progress.tell(label, line)
        for label, job in jobs.items():
            if job.poll():
                progress.end()
                tail = ''.join(stage.log(out, label).read_text().splitlines(keepends=True)[-15:])
                name = ' '.join(filter(None, (stage.name, label)))
                raise SystemExit(
                    f'{tail}\nthe stage {name!r} failed; its whole output: {stage.log(out, label)}'
                )
        if running:
            time.sleep(0.2)
    progress.end()


def _whole_lines(log: TextIO) -> Iterator[str]:
    """Lines written since the last call; half a line waits for the next one."""
    while True:
        place = log.tell()
        line = log.readline()
        if not line.endswith('\n'):
            log.seek(place)
            return
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='results')
    parser.add_argument('--data', type=Path, default=Path('data/demo'), help='the generated data')
    args = parser.parse_args()
    out, data = args.out.resolve(), args.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ['PYTHONPATH'] = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    os.environ['PYTHONUNBUFFERED'] = '1'
    chosen = precision()
    todo = stages(out, data, chosen)
    start = time.monotonic()
    for i, stage in enumerate(todo):
        left = sum(s.minutes for s in todo[i:]) * (1 if chosen == 'bf16' else FP32_TIME)
        print(f'[{i + 1}/{len(todo)}] {stage.name}: {stage.what} (about {left:.0f} min to the end)')
        begin = time.monotonic()
        run(stage, out)
        print(f'    done in {time.monotonic() - begin:.0f} s')
    minutes = (time.monotonic() - start) / 60
    print(f'finished in {minutes:.1f} min: open {out}/report.html')


if __name__ == '__main__':
    main()
