"""Measure frozen features: k-NN and linear-probe accuracy of every block on an image folder.

python tools/evaluate_features.py CHECKPOINT --data ROOT [--random-init] [--out scores.json]

Features are mean patch tokens. Masked image modeling has its best ones in intermediate blocks, so
all are measured; the blocks to quote are chosen on a held-out tenth of the training images. All
blocks of ViT-B on ImageNet-1k take 100 GB of memory: use --layer or --max-train there.
"""

import argparse
import json
import os
from pathlib import Path


def layers_of(text: str) -> list[int] | None:
    if text in ('all', 'last'):
        return None if text == 'all' else [-1]
    return [int(text)]


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('checkpoint', help="work dir of a pretraining run, a checkpoint, or 'random' for untrained")
    add('--config', help='config of the model; default: the one in the work dir')
    add(
        '--data',
        default=os.environ.get('MCBEIT_DATA'),
        help='folder with train/ and val/, each with a folder per class; default: MCBEIT_DATA',
    )
    add('--layer', type=layers_of, metavar='all|last|INT', help='blocks from 0; default: all')
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


def find_model(checkpoint: str, config: str | None) -> tuple[dict, Path | None]:
    """Config of the model, and the checkpoint file unless untrained."""
    from mcbeit_mm.config import launch
    from mcbeit_mm.engine import resume
    from mcbeit_mm.visualization.logs import newest

    file = None if checkpoint == 'random' else resume.find_checkpoint(checkpoint)
    if not config and not Path(checkpoint).is_dir():
        raise ValueError(f'{checkpoint!r} needs --config; only a work dir has its own')
    return launch.load_config(config or str(newest(Path(checkpoint), '*.py'))).model, file


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # after parsing: --help answers at once

    with launch.one_line_errors(ValueError, FileNotFoundError):
        from mcbeit_mm.evaluation.blocks import as_markdown, evaluate_blocks

        options = vars(args)
        checkpoint, out, data = (options.pop(name) for name in ('checkpoint', 'out', 'data'))
        if data is None:
            raise ValueError('no image folder: set --data ROOT or MCBEIT_DATA')
        model, file = find_model(checkpoint, options.pop('config'))
        result = evaluate_blocks(model, file, data, layers=options.pop('layer'), **options)
    data = result['data']
    print(as_markdown(result['models']))
    print(
        f'\nTop-1 in % on {data["val"]} images of {data["classes"]} classes, {data["train"]} for '
        f'training; k = {args.k}. Blocks are chosen on a tenth of the training images.'
    )
    if out:
        out.write_text(json.dumps(dict(checkpoint=checkpoint, **result), indent=2) + '\n')


if __name__ == '__main__':
    main()
