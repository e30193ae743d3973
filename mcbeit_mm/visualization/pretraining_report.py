"""Sections of the report on a pretraining run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..cached_targets.tokenizer import CachedTokenizer
from ..evaluation.blocks import METHODS
from ..mcbeit import MCBEiT
from . import targets
from .charts import curves_figure
from .logs import curves
from .method import method_figure
from .page import Section
from .pretraining_run import PretrainingRun, load_batches

CURVES = {  # logged name -> title
    'loss': 'loss (cross-entropy)',
    'kl': 'kl = loss - target entropy',
    'target_entropy': 'target entropy: the floor of the loss',
    'mlm_acc': 'mlm_acc: share of codes guessed',
    'lr': 'learning rate',
    'grad_norm': 'gradient norm',
    'knn_top1': 'k-NN accuracy, %',
}
TOKENIZER_CURVES = {
    'loss': 'loss',
    'rec': 'reconstruction loss',
    'psnr': 'PSNR, dB',
    'codebook_usage': 'share of codes in use',
    'perplexity': 'perplexity of the codes',
    'kl': 'kl to uniform codes',
    'commit': 'commitment loss',
}
MODELS = {'checkpoint': 'pretrained', 'random init': 'untrained'}


def pretraining_sections(
    run: PretrainingRun,
    folder: Path,
    scalars: Sequence[Mapping],
    tokenizer_log: Sequence[Mapping],
    num_images: int,
) -> list[Section]:
    """Return curves, pictures of images of `folder`, and facts; logs come from `read_scalars`."""
    sections = [curves_section(scalars)]
    if not isinstance(run.model.tokenizer, CachedTokenizer):  # reads targets of training crops only
        batches = load_batches(run, folder, num_images)
        sections += picture_sections(run.model, batches, tokenizer_log)
    return [*sections, facts_section(run, folder, scalars[-1]['step'])]


def curves_section(scalars: Sequence[Mapping]) -> Section:
    """Plot the curves of a run, from `read_scalars`."""
    panels = curves({'run': scalars}, CURVES)
    values = dict(chart=curves_figure(panels, 'iteration'), names=', '.join(panels))
    return Section('curves', 'Training curves', values)


def features_section(scores: Mapping) -> Section:
    """Show the accuracy of frozen features, from the JSON of tools/evaluate_features.py --out."""
    if 'checkpoint' not in scores.get('models', {}):
        raise ValueError(
            "no model 'checkpoint' in the scores: write them with tools/evaluate_features.py "
            'CHECKPOINT --random-init --out FILE'
        )
    models = {MODELS[key]: model for key, model in scores['models'].items()}
    rows, panels = [], {}
    for method, title in METHODS.items():
        panels[f'{title} accuracy, %'] = {
            name: [(int(number), block[method]) for number, block in model['blocks'].items()]
            for name, model in models.items()
        }
        blocks = [str(model['chosen'][method]) for model in models.values()]
        best = [m['blocks'][i][method] for m, i in zip(models.values(), blocks, strict=True)]
        cells = [f'{v:.1f} % (block {i})' for v, i in zip(best, blocks, strict=True)]
        gain = [f'{best[0] - best[1]:+.1f}'] if len(best) > 1 else []
        rows.append([f'{title}, best block', *cells, *gain])
    header = ['', *models, 'gain'][: len(rows[0])]
    chart = curves_figure(panels, 'block')
    values = dict(rows=rows, header=header, data=scores['data'], chart=chart)
    return Section('features', 'Accuracy of the frozen features', values)


def picture_sections(
    model: MCBEiT,
    batches: Sequence[tuple[list[Tensor], Tensor]],
    tokenizer_log: Sequence[Mapping] = (),
) -> list[Section]:
    """Show reconstructions, multi-choice targets and codebook, from batches (inputs, masks)."""
    tokenizer, settings = model.tokenizer, model.head.multi_choice
    inputs, mask = batches[0]
    sections = []
    if targets.can_decode(tokenizer):
        shown = targets.predict(model, [view[:6] for view in inputs], mask[:6])
        pictures = targets.reconstructions(tokenizer, shown)
        sections.append(Section('reconstructions', 'Reconstructions', dict(pictures=pictures)))
    charts = [method_figure(model, inputs, mask, i) for i in range(min(2, len(mask)))]
    values = dict(charts=charts, tau=settings.tau, omega=settings.omega)
    sections.append(Section('choices', 'Multi-choice targets', values))
    scores = targets.score_tokenizer(tokenizer, (inputs[1] for inputs, _ in batches))
    return [*sections, tokenizer_section(scores, tokenizer_log)]


def tokenizer_section(scores: targets.TokenizerScores, scalars: Sequence[Mapping] = ()) -> Section:
    """Show the quality of the visual vocabulary, and its training curves if there is a log."""
    patches = int(scores.counts.sum())
    rows = [
        ['codes in the vocabulary', f'{len(scores.counts)}'],
        ['codes in use', f'{100 * scores.share_used:.1f} %'],
        ['perplexity (effective number of codes)', f'{scores.perplexity:.1f}'],
        ['most frequent code', f'{100 * scores.counts.max() / patches:.1f} % of the patches'],
    ]
    if scores.psnr is not None:
        rows.append(['PSNR of the reconstruction', f'{scores.psnr:.1f} dB'])
    panels = curves({'tokenizer': scalars}, TOKENIZER_CURVES) if scalars else None
    values = dict(
        rows=rows,
        images=scores.num_images,
        patches=patches,
        tiles=[(code, scores.mean_patches[code]) for code in scores.most_frequent(100)],
        chart=curves_figure(panels, 'iteration') if panels else None,
    )
    return Section('tokenizer', 'Tokenizer', values)


def facts_section(run: PretrainingRun, folder: Path, iterations: int) -> Section:
    """List what identifies the run; `folder` holds the report's images."""
    tokenizer = run.model.tokenizer.identity
    rows = [
        ('command', f'python tools/train.py {run.config_file} --work-dir NEW_DIR'),
        ('checkpoint', f'{run.checkpoint_file}, epoch {run.epoch or "unknown"}'),
        ('iterations', str(iterations)),
        ('tokenizer', f'{tokenizer["checkpoint"]}, sha256 {tokenizer["sha256"][:12]}'),
        ('images of this report', str(folder)),
    ]
    return Section('facts', 'About this run', dict(rows=rows))
