"""Logs, scores and pictures of a run -> one HTML file that needs nothing else.

A report is a list of sections: `build_report` takes any, the functions below make those of a
pretraining run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

import numpy as np

from .charts import compared_figure, curves_figure, multi_choice_figure, usage_figure
from .page import STYLE, figure, image, note, table
from .targets import MultiChoice, TokenizerScores

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


@dataclass(frozen=True)
class Section:
    """A heading of the report, plain text, and the HTML below it."""

    title: str
    html: str


def build_report(title: str, intro: str, sections: Sequence[Section]) -> str:
    """One HTML page with a table of contents; title and intro are plain text."""
    links = ''.join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections))
    body = '\n'.join(
        f'<section id="s{i}"><h2>{escape(s.title)}</h2>\n{s.html}</section>'
        for i, s in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<p>{escape(intro)}</p>\n<nav>{links}</nav>\n'
        f'{body}\n</body></html>\n'
    )


def curves_section(scalars: Sequence[Mapping]) -> Section:
    """The curves of a pretraining run, from `read_scalars`."""
    caption = (
        'What to look for: the loss cannot fall below the entropy of its own soft targets, so '
        'watch kl, the part that training can reduce: it should fall. mlm_acc, the share of masked '
        "patches whose likeliest code is the tokenizer's own, should rise. A k-NN curve, if "
        'logged, should rise as well. A gradient norm that explodes means trouble.'
    )
    return Section('Training curves', _curves(scalars, CURVES, caption))


def _curves(scalars: Sequence[Mapping], titles: Mapping[str, str], caption: str) -> str:
    curves = {
        title: [(entry['step'], entry[key]) for entry in scalars if key in entry]
        for key, title in titles.items()
    }
    curves = {title: points for title, points in curves.items() if points}
    if not curves:
        raise ValueError(f'the log holds none of {", ".join(titles)}')
    return figure(curves_figure(curves), f'curves of {", ".join(curves)}', caption)


def features_section(scores: Mapping) -> Section:
    """Accuracy of frozen features, from the JSON of tools/evaluate_features.py --out."""
    names = {'checkpoint': 'pretrained', 'random init': 'untrained'}
    found = scores.get('models', {})
    models = {name: found[key] for key, name in names.items() if key in found}
    if 'pretrained' not in models:
        raise ValueError(
            "the scores hold no model 'checkpoint': write them by tools/evaluate_features.py "
            'CHECKPOINT --random-init --out FILE'
        )
    data = scores['data']
    caption = (
        f'Top-1 accuracy on {data["val"]} validation images of {data["classes"]} classes, with '
        f'{data["train"]} labelled training images; guessing gives {100 / data["classes"]:.1f} %, '
        f'one image counts {100 / data["val"]:.2g} %. The network is frozen: k-NN lets the most '
        'similar training images vote, the linear probe fits one linear layer. What blue gains '
        'over grey was learnt without any label. Blocks count from 0; the best one was chosen on '
        'held-out training images, and in masked image modelling it is often not the last. k-NN '
        'weighs background and object alike, so after short runs it gains less than the probe.'
    )
    lines = {
        f'{title} accuracy, %': {
            name: [(int(number), block[method]) for number, block in model['blocks'].items()]
            for name, model in models.items()
        }
        for method, title in METHODS.items()
    }
    chart = figure(compared_figure(lines, 'block'), 'accuracy by block', caption)
    return Section('Accuracy of the frozen features', _accuracies(models) + chart)


def _accuracies(models: Mapping[str, Mapping]) -> str:
    """Table of the best and the last block."""
    rows = []
    for method, title in METHODS.items():
        for which in ('best', 'last'):
            numbers = [
                str(model['chosen'][method]) if which == 'best' else max(model['blocks'], key=int)
                for model in models.values()
            ]
            values = [
                model['blocks'][number][method]
                for model, number in zip(models.values(), numbers, strict=True)
            ]
            cells = [f'{v:.1f} % (block {n})' for v, n in zip(values, numbers, strict=True)]
            gain = [f'{values[0] - values[1]:+.1f}'] if len(values) > 1 else []
            rows.append([f'{title}, {which} block', *cells, *gain])
    return table(rows, ['', *models, *(['gain'] if len(models) > 1 else [])])


def tokenizer_section(scores: TokenizerScores, scalars: Sequence[Mapping] = ()) -> Section:
    """How good the visual vocabulary is, with the curves of its own training if there are any."""
    tokens, codes = int(scores.counts.sum()), len(scores.counts)
    rows = [
        ['codes in the vocabulary', f'{codes}'],
        ['codes used', f'{100 * scores.share_used:.1f} %'],
        ['perplexity (effective number of codes)', f'{scores.perplexity:.1f}'],
        ['most frequent code', f'{100 * scores.counts.max() / tokens:.1f} % of the patches'],
    ]
    if scores.psnr is not None:
        rows.append(['PSNR of the reconstruction', f'{scores.psnr:.1f} dB'])
    text = (
        f'The tokenizer describes each patch by one of {codes} codes. Measured on '
        f'{scores.num_images} images ({tokens} patches), each patch taking its likeliest code. '
        'More used codes, a higher perplexity and a higher PSNR are better; few used codes mean a '
        'collapsed vocabulary. A student that always guesses the most frequent code has that share '
        'as its mlm_acc.'
    )
    caption = (
        "The tokenizer's own training: the error should fall and PSNR rise. A kink is where the "
        'codes come in after a warm-up without them; only from there on do their use and '
        'perplexity mean anything, and should not fall far.'
    )
    curves = _curves(scalars, TOKENIZER_CURVES, caption) if scalars else ''
    return Section('Tokenizer', table(rows, ['', 'value']) + note(text) + curves)


def codebook_section(scores: TokenizerScores, count: int = 100) -> Section:
    """Histogram of the codes and what the `count` most frequent ones stand for."""
    caption = (
        'Each bar is one code. A healthy vocabulary falls slowly and ends near the right edge; a '
        'steep cliff at the left means that most codes are idle.'
    )
    common = scores.most_frequent(count)
    tiles = ''.join(image(scores.mean_patches[code], f'code {code}') for code in common)
    text = (
        f'The {len(common)} most frequent codes, each shown by the average of the image patches '
        'that take it: colors, edges, corners.'
    )
    chart = figure(usage_figure(scores.counts), 'how often each code is used', caption)
    return Section('Use of the codebook', f'{chart}<div class="codes">{tiles}</div>{note(text)}')


def reconstruction_section(pictures: Mapping[str, np.ndarray]) -> Section:
    """A row per image of `visualization.reconstructions`."""
    heads = ''.join(f'<th>{escape(name)}</th>' for name in pictures)
    rows = ''
    for row in zip(*pictures.values(), strict=True):
        cells = (image(cell, name) for name, cell in zip(pictures, row, strict=True))
        rows += f'<tr>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
    text = (
        'Left to right: what the tokenizer sees; what the student sees; the picture that the codes '
        'of the whole image decode to, the best that any student can reach; the picture with the '
        "student's guesses at masked patches (its likeliest codes, then the average of all codes "
        "by its probabilities) and the tokenizer's codes at visible ones. A good student continues "
        'shapes and colors across the grey area. It is trained for features, not for pictures, so '
        'blur is expected.'
    )
    html = f'<table class="pictures"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return Section('Reconstructions', html + note(text))


def multi_choice_section(
    examples: Sequence[tuple[np.ndarray, np.ndarray, MultiChoice, np.ndarray | None]],
    tau: float,
    omega: float,
) -> Section:
    """Targets of single patches: the arguments of `charts.multi_choice_figure` for each."""
    text = (
        'What the student is asked to predict at a masked patch is no single code but a '
        "probability for every code. Grey: the tokenizer's probabilities p at temperature "
        f'{tau:g}. Orange: the target, {1 - omega:g} of p and {omega:g} of the average p of all '
        'patches, in which those weigh more that the student finds similar (map at the right; '
        'early in training all masked patches look alike to it). Dots: what the student predicts; '
        'the better it is, the nearer they are to the tops of the orange bars. Below the bars: the '
        'codes, decoded at that place. Of each image three masked patches are shown, from the one '
        'the tokenizer is surest about to the least sure; masked patches are veiled at the left.'
    )
    charts = ''
    for example in examples:
        choice = example[2]
        row, column = choice.patch
        caption = (
            f'Patch in row {row + 1}, column {column + 1}: code {choice.codes[0]} has probability '
            f'{choice.before[0]:.3f} before and {choice.after[0]:.3f} after the refinement; the '
            f'student gives it {choice.predicted[0]:.3f}.'
        )
        charts += figure(multi_choice_figure(*example), 'multi-choice target', caption)
    return Section('Multi-choice targets', note(text) + charts)


def facts_section(facts: Mapping[str, str], scalars: Sequence[Mapping]) -> Section:
    """The given facts, with epochs, speed and time from the log."""
    seconds, before = 0.0, 0
    for entry in scalars:
        if 'time' in entry:  # of one step, averaged over the last few
            seconds += entry['time'] * (entry['step'] - before)
            before = entry['step']
    speeds = [entry['images_per_s'] for entry in scalars if 'images_per_s' in entry]
    shares = [entry['tokenizer_share'] for entry in scalars if 'tokenizer_share' in entry]
    rows = [*facts.items(), ['iterations', f'{scalars[-1]["step"]}']]
    rows.append(['training time, without start and evaluation', f'{seconds / 60:.1f} min'])
    if speeds:
        rows.append(['speed, median', f'{median(speeds):.0f} images/s'])
    if shares:
        rows.append(['of which the tokenizer takes', f'{100 * median(shares):.0f} % of the time'])
    return Section('About this run', table(rows))
