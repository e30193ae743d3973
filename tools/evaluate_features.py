"""Measure frozen features: k-NN and linear-probe accuracy of every block on an image folder.

python tools/evaluate_features.py CHECKPOINT --data ROOT [--random-init] [--out scores.json]

Features are mean patch tokens. Masked image modelling has its best ones in intermediate blocks,
so all are measured; the blocks to quote are chosen on a held-out tenth of the training images.
All blocks of ViT-B on ImageNet-1k take 100 GB of memory: use --layer or --max-train there.
"""

import argparse
import ast
import json
import os
import sys
import time
from pathlib import Path

METHODS = {'knn': 'k-NN', 'linear': 'linear probe'}


def layers_of(text: str) -> list[int] | None:
    if text in ('all', 'last'):
        return None if text == 'all' else [-1]
    return [int(text)]


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add(
        'checkpoint',
        help="pretraining checkpoint or work dir, or 'random' for untrained weights of --config",
    )
    add('--config', help='config of the model; default: the one saved in the checkpoint')
    add(
        '--data',
        default=os.environ.get('MCBEIT_DATA'),
        help='folder with train/ and val/, each with a folder per class; default: MCBEIT_DATA',
    )
    add(
        '--layer',
        type=layers_of,
        metavar='all|last|INT',
        help='blocks, counted from 0; default: all',
    )
    add('--random-init', action='store_true', help='measure the untrained architecture as well')
    add('--img-size', type=int, help="pixels after the crop; default: the backbone's")
    add('--k', type=int, default=20, help='neighbours of k-NN')
    add('--max-train', type=int, help='use this many training images, evenly spaced over classes')
    add('--batch-size', type=int, default=128)
    add('--num-workers', type=int, default=min(4, os.cpu_count() or 1))
    add('--device', help="default: 'cuda' if there is one, else 'cpu'")
    add('--bf16', action='store_true', help='extract features under bfloat16 autocast')
    add('--out', type=Path, help='also write the scores to this JSON file')
    return parser.parse_args()


def saved_model_config(checkpoint: dict) -> dict:
    """Read `model = dict(...)` from the config text that MMEngine saves, without running it."""

    class DictCalls(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            self.generic_visit(node)
            if ast.unparse(node.func) != 'dict':
                return node  # not a literal: refused below
            if node.args:  # dict({'no identifier': 1})
                return node.args[0]
            keys = [ast.Constant(item.arg) for item in node.keywords]
            return ast.Dict(keys, [item.value for item in node.keywords])

    try:
        for node in ast.parse(checkpoint['meta']['cfg']).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'model':
                return ast.literal_eval(DictCalls().visit(node.value))
    except (KeyError, TypeError, ValueError, SyntaxError):
        pass
    raise ValueError('the checkpoint holds no readable config of a model: give one by --config')


def build_backbone(config: dict, state_dict: dict | None):
    """Build a backbone; load all `backbone.*` tensors of a state dict, if there is one."""
    import torch

    from mcbeit_mm.backbone import MCBEiTViT

    if config['type'] != 'MCBEiTViT':
        raise ValueError(f'the backbone is a {config["type"]}, only MCBEiTViT is supported')
    torch.manual_seed(0)
    backbone = MCBEiTViT(**{key: value for key, value in config.items() if key != 'type'})
    if state_dict is None:
        return backbone
    prefix = 'backbone.'
    weights = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not weights:
        raise ValueError(
            f'no backbone.* tensors in the checkpoint, which has {list(state_dict)[:3]}'
        )
    try:
        missing, unexpected = backbone.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(f'the weights do not fit the config: {error}') from error
    if missing or unexpected:
        names = [f'missing {n}' for n in missing[:3]] + [f'unexpected {n}' for n in unexpected[:3]]
        raise ValueError(
            f'the weights do not fit the config ({len(missing)} tensors missing, '
            f'{len(unexpected)} unexpected): {", ".join(names)}'
        )
    return backbone


def measure(backbone, datasets: list, args: argparse.Namespace) -> dict:
    """Score the blocks and choose one for each method."""
    import torch

    from mcbeit_mm.evaluation import features as evaluation

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    backbone.to(device)
    feats = []
    for dataset in datasets:
        start = time.time()
        loader = evaluation.ordered_loader(dataset, args.batch_size, args.num_workers)
        feats.append(evaluation.extract_features(backbone, loader, device, args.layer, args.bf16))
        print(f'{len(dataset)} images in {time.time() - start:.0f} s', file=sys.stderr)
    depth = backbone.num_layers
    numbers = range(depth) if args.layer is None else [i % depth for i in args.layer]
    scores = evaluation.score_layers(*feats, args.k, device)
    blocks = dict(zip(numbers, scores, strict=True))
    chosen = {m: max(blocks, key=lambda i, m=m: blocks[i][f'{m}_held_out']) for m in METHODS}
    return dict(chosen=chosen, blocks=blocks)


def markdown(models: dict[str, dict]) -> str:
    """Accuracies: a row per block, two columns per model."""
    columns = [(model, method) for model in models.values() for method in METHODS]
    titles = [f'{title} ({name})' for name in models for title in METHODS.values()]
    rows = [['block', *titles], ['---:'] * (1 + len(titles))]
    for number in columns[0][0]['blocks']:
        rows.append([str(number), *(f'{m["blocks"][number][key]:.2f}' for m, key in columns)])
    chosen = [(m['chosen'][key], m['blocks'][m['chosen'][key]][key]) for m, key in columns]
    rows.append(['chosen', *(f'{accuracy:.2f} (block {number})' for number, accuracy in chosen)])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def evaluate(args: argparse.Namespace) -> None:
    from mcbeit_mm.config import launch
    from mcbeit_mm.engine import resume
    from mcbeit_mm.evaluation import features as evaluation
    from mcbeit_mm.weights.reading import read_checkpoint, state_dict_of

    untrained = args.checkpoint == 'random'
    if args.data is None:
        raise ValueError('no image folder: give --data ROOT or set MCBEIT_DATA')
    if untrained and not args.config:
        raise ValueError("'random' needs --config")
    checkpoint = None if untrained else read_checkpoint(resume.find_checkpoint(args.checkpoint))
    model = launch.load_config(args.config).model if args.config else saved_model_config(checkpoint)
    if not {'backbone', 'data_preprocessor'} <= set(model):
        raise ValueError('that model has no backbone (a tokenizer?): give a pretraining run')
    views, size = (
        model['data_preprocessor'],
        args.img_size or model['backbone'].get('img_size', 224),
    )
    normalisation = dict(mean=views['mean'], std=views['std'], to_rgb=views.get('to_rgb', False))
    train, val = evaluation.folder_datasets(
        args.data, size, **normalisation, max_train=args.max_train
    )
    weights = {} if untrained else {'checkpoint': state_dict_of(checkpoint)}
    if untrained or args.random_init:
        weights['random init'] = None
    backbones = {name: build_backbone(model['backbone'], w) for name, w in weights.items()}
    models = {name: measure(backbone, [train, val], args) for name, backbone in backbones.items()}
    data = dict(root=args.data, train=len(train), val=len(val), classes=len(train.CLASSES))
    print(markdown(models))
    print(
        f'\nTop-1 in % on {data["val"]} images of {data["classes"]} classes, {data["train"]} for '
        f'training; k = {args.k}. The chosen blocks are the best on a tenth of the training images.'
    )
    if args.out:
        result = dict(checkpoint=args.checkpoint, data=data, k=args.k, models=models)
        args.out.write_text(json.dumps(result, indent=2) + '\n')


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import (
        launch,  # heavy imports come after parsing, so that --help answers at once
    )

    with launch.one_line_errors(ValueError, FileNotFoundError):
        evaluate(args)


if __name__ == '__main__':
    main()
