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
    r'(?:Epoch|Iter)\(train\)\s+\[\s*(?P<at>\d+)\](?:\[\s*(?P<batch>\d+)/(?P<of>\d+)\])?'
)
SHOWN = ('eta', 'kl', 'mlm_acc', 'rec', 'psnr', 'usage', 'perplexity', 'images_per_s')


@dataclass
class Stage:
    """One command of the demo."""

    name: str
    what: str
    command: list[str]
    minutes: float  # on 2 CPU cores, for the estimate of what is left


def stages(out: Path, data: Path) -> list[Stage]:
    """The commands, in order; each could be typed by hand."""
    tokenizer, pretrain = out / 'tokenizer', out / 'pretrain'
    checkpoint = pretrain / 'last.pth'
    return [
        Stage('data', 'handwritten digits on photographs', ['make_demo_data.py', '--out', f'{data}'], 0.5),
        Stage(
            'tokenizer',
            'a small Gumbel VQGAN learns the visual vocabulary',
            ['train.py', 'configs/demo/tokenizer_gumbel-f8-256_demo.py', '--work-dir', f'{tokenizer}'],
            2.0,
        ),
        Stage(
            'pretrain',
            'a small ViT learns by predicting masked patches (mc-BEiT)',
            ['train.py', 'configs/demo/mcbeit_vit-micro-p16_demo.py', '--work-dir', f'{pretrain}'],
            5.0,
        ),
        Stage(
            'evaluate',
            'k-NN and linear probe of the frozen features, pretrained and random',
            ['evaluate_features.py', f'{checkpoint}', '--random-init', '--out', f'{out}/features.json'],
            1.0,
        ),
        Stage(
            'report',
            'curves and pictures',
            ['report.py', f'{pretrain}', '--features', f'{out}/features.json',
             '--tokenizer-dir', f'{tokenizer}', '--out', f'{out}/report.html'],
            0.5,
        ),
    ]  # fmt: skip


def short(line: str) -> str | None:
    """One line of MMEngine's training log, cut to what a newcomer wants to see; None for the rest."""
    match = STEP.search(line)
    if not match:
        return None
    place = f'epoch {match["at"]}, step {match["batch"]}/{match["of"]}' if match['of'] else match['at']
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
            progress = short(line) or (line.rstrip() if stage.name in ('data', 'evaluate') else None)
            if progress:
                print(f'\r\033[K    {progress[:110]}' if live else f'    {progress}', end='' if live else '\n')
                sys.stdout.flush()
        if live:
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
    todo = stages(out, data)
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
