"""Sections of the report on a pretraining run."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from torch import Tensor

from ..mcbeit import MCBEiT
from ..tokenizers.base import to_uint8
from . import targets
from .charts import curves_figure, multi_choice_figure, usage_figure
from .page import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
METHODS = {'knn': 'k-NN', 'linear': 'linear probe'}
MODELS = {'checkpoint': 'pretrained', 'random init': 'untrained'}


def draw_curves(scalars: Sequence[Mapping], titles: Mapping[str, str]) -> 'tuple[Figure, str]':
    """Chart of the logged values among `titles`, and their names; ValueError if there are none."""
    points = {
        title: [(entry['step'], entry[key]) for entry in scalars if key in entry]
        for key, title in titles.items()
    }
    panels = {title: {title: line} for title, line in points.items() if line}
    if not panels:
        raise ValueError(f'the log has none of {", ".join(titles)}')
    return curves_figure(panels, 'iteration'), ', '.join(panels)


def curves_section(scalars: Sequence[Mapping]) -> Section:
    """Curves of a run, from `read_scalars`."""
    chart, names = draw_curves(scalars, CURVES)
    return Section('curves', 'Training curves', dict(chart=chart, names=names))


def features_section(scores: Mapping) -> Section:
    """Accuracy of frozen features, from the JSON of tools/evaluate_features.py --out."""
    found = scores.get('models', {})
    models = {name: found[key] for key, name in MODELS.items() if key in found}
    if 'pretrained' not in models:
        raise ValueError(
            "no model 'checkpoint' in the scores: write them with tools/evaluate_features.py "
            'CHECKPOINT --random-init --out FILE'
        )
    panels = {
        f'{title} accuracy, %': {
            name: [(int(number), block[method]) for number, block in model['blocks'].items()]
            for name, model in models.items()
        }
        for method, title in METHODS.items()
    }
    rows = []
    for method, title in METHODS.items():
        blocks = [str(model['chosen'][method]) for model in models.values()]
        values = [m['blocks'][i][method] for m, i in zip(models.values(), blocks, strict=True)]
        cells = [f'{v:.1f} % (block {i})' for v, i in zip(values, blocks, strict=True)]
        gain = [f'{values[0] - values[1]:+.1f}'] if len(values) > 1 else []
        rows.append([f'{title}, best block', *cells, *gain])
    values = dict(
        rows=rows,
        header=['', *models, *(['gain'] if len(models) > 1 else [])],
        data=scores['data'],
        chart=curves_figure(panels, 'block'),
    )
    return Section('features', 'Accuracy of the frozen features', values)


def picture_sections(
    model: MCBEiT,
    batches: Sequence[tuple[list[Tensor], Tensor]],
    tokenizer_log: Sequence[Mapping] = (),
) -> list[Section]:
    """Reconstructions, multi-choice targets and codebook, from batches (inputs, masks)."""
    tokenizer, settings = model.tokenizer, model.head.multi_choice
    decodes = targets.can_decode(tokenizer)
    inputs, mask = batches[0]
    shown = targets.predict(model, [view[:6] for view in inputs], mask[:6])
    originals = to_uint8(shown.tokenizer_view)
    examples = []
    for i in range(min(2, len(mask))):
        for choice in targets.multi_choice(model, shown, i, targets.select_patches(shown, i)):
            codes = targets.codes_in_place(tokenizer, shown, i, choice) if decodes else None
            chart = multi_choice_figure(originals[i], mask[i].cpu().numpy(), choice, codes)
            examples.append((chart, choice))
    sections = []
    if decodes:
        pictures = targets.reconstructions(tokenizer, shown)
        values = dict(pictures=pictures, count=len(originals))
        sections.append(Section('reconstructions', 'Reconstructions', values))
    values = dict(examples=examples, tau=settings.tau, omega=settings.omega)
    sections.append(Section('choices', 'Multi-choice targets', values))
    scores = targets.score_tokenizer(tokenizer, (inputs[1] for inputs, _ in batches))
    return [*sections, tokenizer_section(scores, tokenizer_log), codebook_section(scores)]


def tokenizer_section(scores: targets.TokenizerScores, scalars: Sequence[Mapping] = ()) -> Section:
    """Quality of the visual vocabulary, with the curves of its training if there is a log."""
    patches = int(scores.counts.sum())
    rows = [
        ['codes in the vocabulary', f'{len(scores.counts)}'],
        ['codes in use', f'{100 * scores.share_used:.1f} %'],
        ['perplexity (effective number of codes)', f'{scores.perplexity:.1f}'],
        ['most frequent code', f'{100 * scores.counts.max() / patches:.1f} % of the patches'],
    ]
    if scores.psnr is not None:
        rows.append(['PSNR of the reconstruction', f'{scores.psnr:.1f} dB'])
    chart = draw_curves(scalars, TOKENIZER_CURVES)[0] if scalars else None
    values = dict(rows=rows, images=scores.num_images, patches=patches, chart=chart)
    return Section('tokenizer', 'Tokenizer', values)


def codebook_section(scores: targets.TokenizerScores, count: int = 100) -> Section:
    """Histogram of the codes, and the average patch of the `count` most frequent ones."""
    tiles = [(code, scores.mean_patches[code]) for code in scores.most_frequent(count)]
    values = dict(chart=usage_figure(scores.counts), tiles=tiles)
    return Section('codebook', 'Use of the codebook', values)


def facts_section(facts: Mapping[str, str], scalars: Sequence[Mapping]) -> Section:
    """The given facts, with iterations, speed and time from the log."""
    seconds, before = 0.0, 0
    for entry in scalars:
        if 'time' in entry:  # of one step, averaged over the last few
            seconds += entry['time'] * (entry['step'] - before)
            before = entry['step']
    rows = [*facts.items(), ('iterations', f'{scalars[-1]["step"]}')]
    rows.append(('training time, without start-up and evaluation', f'{seconds / 60:.1f} min'))
    if speeds := [entry['images_per_s'] for entry in scalars if 'images_per_s' in entry]:
        rows.append(('median speed', f'{median(speeds):.0f} images/s'))
    if shares := [entry['tokenizer_share'] for entry in scalars if 'tokenizer_share' in entry]:
        rows.append(('tokenizer', f'{100 * median(shares):.0f} % of the time'))
    return Section('facts', 'About this run', dict(rows=rows))
