"""Run the whole toolkit on the embedded data: data, tokenizer, pretraining, evaluation, report.

python tools/demo.py [--out work_dirs/demo] [--data data/demo]
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEP = re.compile(
    r'(?:Epoch\(train\)\s+\[\s*(?P<epoch>\d+)\]|Iter\(train\) )\[\s*(?P<step>\d+)/(?P<of>\d+)\]'
)
SHOWN = ('eta', 'rec', 'psnr', 'codebook_usage', 'kl', 'mlm_acc', 'knn_top1', 'images_per_s')


@dataclass
class Stage:
    """One command of the demo."""

    name: str
    what: str
    command: list[str]
    minutes: float  # on 2 CPU cores, for the estimate of what is left


def precision(cpu: Path = Path('/proc/cpuinfo')) -> str:
    """bf16 where the processor multiplies it in hardware (a GPU, or a CPU with AMX), else fp32."""
    import torch

    fast = torch.cuda.is_available() or (cpu.is_file() and 'amx_bf16' in cpu.read_text())
    return 'bf16' if fast else 'fp32'


def stages(out: Path, data: Path, precision: str) -> list[Stage]:
    """The commands, in order; each could be typed by hand."""
    tokenizer, pretrain, scores = out / 'tokenizer', out / 'pretrain', out / 'features.json'
    demo, train = ROOT / 'configs/demo', ['train.py', '--precision', precision]
    rows = [
        (
            'data',
            0.5,
            'handwritten digits on photographs',
            ['make_demo_data.py', '--out', data],
        ),
        (
            'tokenizer',
            2.5,
            'a small Gumbel VQGAN learns the visual vocabulary',
            [*train, demo / 'tokenizer_gumbel-f8-256_demo.py', '--work-dir', tokenizer],
        ),
        (
            'pretrain',
            6.5,
            'a small ViT predicts masked patches (mc-BEiT)',
            [*train, demo / 'mcbeit_vit-micro-p16_demo.py', '--work-dir', pretrain],
        ),
        (
            'evaluate',
            1.0,
            'k-NN and linear probe of frozen features, pretrained and random',
            ['evaluate_features.py', pretrain, '--random-init', '--out', scores],
        ),
        (
            'report',
            0.5,
            'curves and pictures',
            ['report.py', pretrain, '--features', scores, '--tokenizer-dir', tokenizer]
            + ['--out', out / 'report.html'],
        ),
    ]
    return [Stage(name, what, [str(word) for word in words], m) for name, m, what, words in rows]


def short(line: str) -> str | None:
    """Cut a line of MMEngine's training log to what a newcomer wants; None for other lines."""
    match = STEP.search(line)
    if not match:
        return None
    epoch = f'epoch {match["epoch"]}, ' if match['epoch'] else ''
    place = f'{epoch}step {match["step"]}/{match["of"]}'
    values = dict(re.findall(r'(\w+): (\S+)', line))
    return '  '.join([place, *(f'{key} {values[key]}' for key in SHOWN if key in values)])


def run(stage: Stage, log: Path, env: dict) -> None:
    """Run one stage; its full output goes to `log`, progress to the screen."""
    tool, *arguments = stage.command
    command = [sys.executable, f'{ROOT}/tools/{tool}', *arguments]
    live = sys.stdout.isatty()
    with log.open('w') as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in process.stdout:
            file.write(line)
            progress = short(line) if tool == 'train.py' else line.rstrip()
            if progress and live and tool == 'train.py':
                print(f'\r\033[K    {progress[:110]}', end='', flush=True)
            elif progress:
                print(f'    {progress}', flush=True)
        if live and tool == 'train.py':
            print()
    if process.wait():
        tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
        raise SystemExit(f'{tail}\nthe stage {stage.name!r} failed; its whole output: {log}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='results')
    parser.add_argument('--data', type=Path, default=Path('data/demo'), help='the generated data')
    args = parser.parse_args()
    out, data = args.out.resolve(), args.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    env = dict(
        os.environ,
        PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
        PYTHONUNBUFFERED='1',
        MCBEIT_DATA=f'{data}/classification',
        MCBEIT_TOKENIZER=f'{out}/tokenizer/tokenizer',
    )
    todo = stages(out, data, precision())
    start = time.monotonic()
    for i, stage in enumerate(todo):
        left = sum(s.minutes for s in todo[i:])
        print(f'[{i + 1}/{len(todo)}] {stage.name}: {stage.what} (about {left:.0f} min to the end)')
        begin = time.monotonic()
        run(stage, out / f'{stage.name}.log', env)
        print(f'    done in {time.monotonic() - begin:.0f} s')
    minutes = (time.monotonic() - start) / 60
    print(f'finished in {minutes:.1f} min: open {out}/report.html')


if __name__ == '__main__':
    main()
