"""Write the report of a pretraining run and of transfers, in one HTML file.

python tools/report.py WORK_DIR [--features JSON] [--tokenizer-dir DIR] [--data ROOT] [--out HTML]
    [--transfer WORK_DIR [FROM_SCRATCH_DIR]] ...
python tools/report.py --transfer WORK_DIR [FROM_SCRATCH_DIR] --out HTML
"""

import argparse
import json
import re
from pathlib import Path

INTRO = (
    'mc-BEiT learns from unlabelled images: a tokenizer describes every patch by probabilities '
    'over a visual vocabulary, most patches are hidden, and the student, a vision transformer, '
    'predicts those probabilities for the hidden patches from the visible ones.'
)


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse_args() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('work_dir', type=Path, nargs='?', help='work dir of a pretraining run of tools/train.py')
    add('--checkpoint', type=Path, help='default: the newest of WORK_DIR')
    add('--features', type=Path, help='JSON that tools/evaluate_features.py --out wrote')
    add('--tokenizer-dir', type=Path, help="work dir of the tokenizer's training, for its curves")
    add(
        '--data',
        type=Path,
        help="folder of images, or one with val/; default: the config's, val/ beside train/ if any",
    )
    add(
        '--transfer',
        type=Path,
        nargs='+',
        action='append',
        metavar='DIR',
        default=[],
        help='work dirs of a transfer run and, to compare, of the same from scratch; once per task',
    )
    add('--max-val', type=positive, help='use that many validation images of transfers')
    add('--out', type=Path, help='default: WORK_DIR/report.html')
    add('--num-images', type=positive, default=256, help='to measure the tokenizer (%(default)s)')
    add('--device', help="default: 'cuda' if there is one, else 'cpu'")
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='override config values')
    args = parser.parse_args()
    if not args.work_dir and not (args.transfer and args.out):
        parser.error('give the WORK_DIR of a pretraining run, or --transfer and --out')
    return args


def read_scores(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{file} is no JSON: {error}') from error


def load_model(cfg, checkpoint: dict, device: str):
    """Build the model of a config with the weights of a checkpoint and the tokenizer it names."""
    from mmengine.registry import MODELS

    from mcbeit_mm.weights.reading import state_dict_of

    model = MODELS.build(cfg.model)
    try:
        model.load_state_dict(state_dict_of(checkpoint))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'the checkpoint does not fit the config: {str(error)[:400]}') from error
    trained, given = checkpoint.get('meta', {}).get('tokenizer'), model.tokenizer.identity
    if trained and trained['sha256'] != given['sha256']:
        raise ValueError(
            f'the run had the tokenizer {trained["checkpoint"]} ({trained["sha256"][:12]}), not '
            f'{given["checkpoint"]} ({given["sha256"][:12]}): give the right one by '
            '--cfg-options model.target_generator.checkpoint=...'
        )
    return model.to(device)


def image_folder(cfg, root: Path | None) -> Path:
    """Return where the pictures come from: validation images rather than training ones."""
    from mcbeit_mm.config.checks.classes import innermost_dataset

    if root is None:
        dataset = innermost_dataset(cfg.train_dataloader.dataset)
        prefix = dataset.get('data_prefix') or ''
        prefix = prefix if isinstance(prefix, str) else next(iter(prefix.values()))
        root = Path(dataset.get('data_root') or '', prefix)
        validation = root.parent / 'val' if root.name == 'train' else root
    else:
        validation = root / 'val'
    for folder in (validation, root):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f'no image folder {root}: give one by --data')


def load_batches(cfg, folder: Path, num_images: int, model) -> list:
    """Batches (inputs, masks) of random images, always the same, under the run's own masks."""
    import numpy as np
    import torch
    from mmengine.dataset import default_collate
    from mmpretrain.datasets import CustomDataset

    from mcbeit_mm.config.checks.classes import innermost_dataset

    pipeline = []
    for step in innermost_dataset(cfg.train_dataloader.dataset)['pipeline']:
        if step['type'] == 'TwoViewRandomResizedCrop':
            # The largest square in the middle.
            step = dict(step, scale=(1, 1), ratio=(1, 1), flip_prob=0)
        if step['type'] != 'RandomFlip':
            pipeline.append(step)
    try:
        dataset = CustomDataset(data_root=str(folder), with_label=False, pipeline=pipeline)
    except RuntimeError as error:
        raise ValueError(f'no images in {folder}') from error
    np.random.seed(0)  # of the masks as well
    dataset.get_subset_(np.random.permutation(len(dataset))[:num_images].tolist())
    count = len(dataset)
    batches = []
    for start in range(0, count, 32):
        samples = [dataset[i] for i in range(start, min(start + 32, count))]
        data = model.data_preprocessor(default_collate(samples))
        batches.append((data['inputs'], torch.stack([s.mask for s in data['data_samples']])))
    return batches


def picture_sections(model, batches: list, tokenizer_log: list) -> list:
    """Everything that needs the model: reconstructions, targets, tokenizer."""
    from mcbeit_mm.visualization import report
    from mcbeit_mm.visualization import targets as vis

    tokenizer, multi_choice = model.tokenizer, model.head.multi_choice
    decodes = vis.can_decode(tokenizer)
    inputs, mask = batches[0]
    shown = vis.predict(model, [view[:6] for view in inputs], mask[:6])
    originals = vis.to_uint8(shown.tokenizer_view)
    examples = []
    for i in range(min(2, len(mask))):
        for choice in vis.multi_choice(model, shown, i, vis.select_patches(shown, i)):
            codes = vis.codes_in_place(tokenizer, shown, i, choice) if decodes else None
            examples.append((originals[i], mask[i].cpu().numpy(), choice, codes))
    scores = vis.score_tokenizer(tokenizer, (inputs[1] for inputs, _ in batches))
    pictures = vis.reconstructions(tokenizer, shown) if decodes else None
    return [
        *([report.reconstruction_section(pictures)] if decodes else []),
        report.multi_choice_section(examples, multi_choice.tau, multi_choice.omega),
        report.tokenizer_section(scores, tokenizer_log),
        report.codebook_section(scores),
    ]


def facts(config: Path, checkpoint_file: Path, meta: dict, model, folder: Path) -> dict[str, str]:
    """Collect what identifies a run; versions come from its own log."""
    logs = sorted(config.parent.glob('*/*.log'))
    text = logs[-1].read_text() if logs else ''
    versions = re.findall(r'^    (Python|PyTorch|MMEngine|GPU [\d,]+): (\S+.*)', text, re.MULTILINE)

    def millions(module) -> str:
        return f'{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M'

    tokenizer = model.tokenizer.identity
    return {
        'repeat it with': f'python tools/train.py {config} --work-dir ANOTHER_DIR',
        'checkpoint': f'{checkpoint_file}, epoch {meta.get("epoch", "unknown")}',
        'tokenizer': f'{tokenizer["checkpoint"]}, sha256 {tokenizer["sha256"][:12]}',
        'images of this report': str(folder),
        'parameters': f'backbone {millions(model.backbone)}, head {millions(model.head)}, '
        f'tokenizer {millions(model.tokenizer)} (frozen)',
        **{name: value.split(' (')[0] for name, value in versions},
    }


def pretraining_sections(args: argparse.Namespace, device: str) -> tuple[str, list]:
    """Title, and accuracies, curves, pictures and facts of a pretraining run."""
    from mmengine.registry import init_default_scope

    from mcbeit_mm.cached_targets.tokenizer import CachedTokenizer
    from mcbeit_mm.config import launch
    from mcbeit_mm.engine import resume
    from mcbeit_mm.visualization import report
    from mcbeit_mm.visualization.logs import newest, read_scalars
    from mcbeit_mm.weights.reading import read_checkpoint

    scalars = read_scalars(args.work_dir)
    tokenizer_log = read_scalars(args.tokenizer_dir) if args.tokenizer_dir else []
    config = newest(args.work_dir, '*.py')
    cfg = launch.load_config(str(config), args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    file = resume.find_checkpoint(args.checkpoint or args.work_dir)
    checkpoint = read_checkpoint(file)
    model = load_model(cfg, checkpoint, device)
    folder = image_folder(cfg, args.data)
    sections = []
    if args.features:
        sections.append(report.features_section(read_scores(args.features)))
    sections.append(report.curves_section(scalars))
    if not isinstance(model.tokenizer, CachedTokenizer):  # it knows the training crops only
        batches = load_batches(cfg, folder, args.num_images, model)
        sections += picture_sections(model, batches, tokenizer_log)
    known = facts(config, file, checkpoint.get('meta', {}), model, folder)
    sections.append(report.facts_section(known, scalars))
    return f'mc-BEiT pretraining: {config.stem}', sections


def transfer_sections(args: argparse.Namespace, device: str) -> list:
    """The table of all transfers, then a section for each task."""
    from mcbeit_mm.visualization import transfer_report
    from mcbeit_mm.visualization.transfer_runs import TransferRun

    comparisons = [
        transfer_report.compare([TransferRun(folder) for folder in folders], device, args.max_val)
        for folders in args.transfer
    ]
    sections = [transfer_report.task_section(comparison) for comparison in comparisons]
    return [transfer_report.table_section(comparisons), *sections]


def write_report(args: argparse.Namespace) -> Path:
    import torch

    from mcbeit_mm.visualization import report

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    title, intro, sections = 'Transfer', '', []
    if args.work_dir:
        intro = INTRO
        title, sections = pretraining_sections(args, device)
    if args.transfer:
        # behind the accuracy of the features: both say what pretraining is worth
        place = 1 if args.features and args.work_dir else 0
        sections[place:place] = transfer_sections(args, device)
    out = args.out or args.work_dir / 'report.html'
    out.write_text(report.build_report(title, intro, sections))
    return out


def main() -> None:
    args = parse_args()
    from mcbeit_mm.config import launch  # after parsing: --help answers at once

    with launch.one_line_errors(ValueError, FileNotFoundError, ImportError):
        out = write_report(args)
    print(f'{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser')


if __name__ == '__main__':
    main()
