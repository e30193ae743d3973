"""Measure frozen features: k-NN and linear-probe accuracy of every block on an image folder.

python tools/evaluate_features.py CHECKPOINT --data ROOT [--random-init] [--out scores.json]

Features are mean patch tokens. Masked image modeling has its best ones in intermediate blocks, so
all are measured; the blocks to quote are chosen on a held-out tenth of the training images. All
blocks of ViT-B on ImageNet-1k take 100 GB of memory: use --layer or --max-train there.
"""

import argparse
import os
from pathlib import Path


def parse_layers(text: str) -> list[int] | None:
    if text in ('all', 'last'):
        return None if text == 'all' else [-1]
    return [int(text)]


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('checkpoint', help="work dir of a pretraining run, a checkpoint, or 'random' for untrained")
    add('--config', help='config of the model; default: the one in the work dir')
    default = os.environ.get('MCBEIT_DATA')
    add(
        '--data',
        default=default,
        required=not default,
        help='folder with train/ and val/, each with a folder per class; default: MCBEIT_DATA',
    )
    add(
        '--layer',
        type=parse_layers,
        dest='layers',
        metavar='all|last|INT',
        help='block to measure, from 0; default: all',
    )
    add('--random-init', action='store_true', help='measure the untrained architecture as well')
    add('--img-size', type=int, help="pixels after the crop; default: the backbone's")
    add('--k', type=int, default=20, help='neighbors of k-NN')
    add('--max-train', type=int, help='use this many training images, evenly spaced over classes')
    add('--batch-size', type=int, default=128)
    add('--num-workers', type=int, default=min(4, os.cpu_count() or 1))
    add('--device', help="default: 'cuda' if available, else 'cpu'")
    add('--bf16', action='store_true', help='extract features under bfloat16 autocast')
    add('--out', type=Path, help='also write the scores to this JSON file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # after parsing: --help answers at once

    with launch.one_line_errors(ValueError, FileNotFoundError):
        from mcbeit_mm.apis import evaluate_features
        from mcbeit_mm.evaluation.blocks import as_markdown

        print(as_markdown(evaluate_features(**vars(args))))


if __name__ == '__main__':
    main()
