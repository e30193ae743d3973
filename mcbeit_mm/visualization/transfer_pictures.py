"""Predictions of transfer runs -> HTML with pictures beside the truth."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from .drawing import colors, paint_classes, paint_objects, read_image
from .page import image, note
from .transfer_runs import Outcome

DRAWN, SCORE = 3, 0.1  # so many detections of an image are drawn, with at least this score
MOST = 24  # classes in the legend
MISSING = 'missing'
UNPAINTED = 255
READING = {
    'classification': 'Below each photograph: its class, and what each model says, with the '
    'probability it gives to that.',
    'segmentation': 'Each color is a class. A class called background is not painted, nor are '
    'pixels of the truth that nobody labelled.',
    'detection': f'The {DRAWN} boxes and masks with the highest scores, if {SCORE:g} or more; the '
    'number behind a class is its score.',
}


def samples_table(task: str, outcomes: Mapping[str, Outcome]) -> str:
    """HTML with a column per sample of the outcomes; rows: image, truth, each model by name."""
    first = next(iter(outcomes.values()))
    palette = colors(len(first.classes))
    draw = DRAW[task]
    rows: dict[str, list[str]] = {}
    for path, sample in first.samples.items():
        picture = read_image(path)
        rows.setdefault('image', []).append(image(picture, 'image'))
        rows.setdefault('truth', []).append(draw(picture, sample, True, first.classes, palette))
        for name, outcome in outcomes.items():
            guess = draw(picture, outcome.samples[path], False, first.classes, palette)
            rows.setdefault(name, []).append(guess)
    if task == 'detection':
        del rows['image']  # seen well enough below the boxes
    body = ''.join(
        f'<tr><th>{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
        for name, cells in rows.items()
    )
    legend = _legend(first.classes, palette) if task == 'segmentation' else ''
    html = f'<table class="pictures samples"><tbody>{body}</tbody></table>{legend}'
    return html + note(f'{READING[task]} Random validation images.')


def _legend(classes: Sequence[str], palette: np.ndarray) -> str:
    names = ''.join(
        f'<span><i style="background: rgb{tuple(color.tolist())}"></i>{escape(name)}</span>'
        for name, color in zip(classes[:MOST], palette, strict=False)
        if name != 'background'
    )
    return f'<p class="legend">{names}</p>'


def _label(picture: np.ndarray, sample: Any, truth: bool, classes: Sequence, _: Any) -> str:
    """Class of a photograph as text, wrong ones marked."""
    label = int(sample.gt_label)
    if truth:
        return escape(classes[label])
    guess = int(sample.pred_score.argmax())
    kind = 'right' if guess == label else 'wrong'
    return f'<span class="{kind}">{escape(classes[guess])}</span> {sample.pred_score[guess]:.2f}'


def _classes(
    picture: np.ndarray, sample: Any, truth: bool, classes: Sequence, palette: np.ndarray
) -> str:
    """Painted photograph."""
    data = sample.get('gt_sem_seg') if truth else sample.pred_sem_seg
    if data is None:
        return MISSING
    labels = data.data.squeeze(0).numpy()
    if 'background' in classes:
        labels = np.where(labels == list(classes).index('background'), UNPAINTED, labels)
    return image(paint_classes(picture, labels, palette), 'truth' if truth else 'prediction')


def _objects(
    picture: np.ndarray, sample: Any, truth: bool, classes: Sequence, palette: np.ndarray
) -> str:
    """Photograph with boxes and masks."""
    objects = sample.get('gt_instances') if truth else sample.pred_instances
    if objects is None:
        return MISSING
    if not truth:
        objects = objects[objects.scores.argsort(descending=True)[:DRAWN]]
        objects = objects[objects.scores >= SCORE]
    labels = objects.labels.tolist()
    scores = [''] * len(labels) if truth else [f' {score:.2f}' for score in objects.scores.tolist()]
    texts = [f'{classes[label]}{score}' for label, score in zip(labels, scores, strict=True)]
    boxes, masks = objects.bboxes, objects.get('masks')
    boxes = getattr(boxes, 'tensor', boxes).numpy()  # mmdet's HorizontalBoxes
    if masks is not None:
        masks = np.asarray(getattr(masks, 'masks', masks)).astype(bool)  # and BitmapMasks
        if masks.shape[1:] != picture.shape[:2]:
            masks = None
    shown = paint_objects(picture, boxes, labels, masks, texts, palette)
    return image(shown, 'truth' if truth else 'prediction')


DRAW = dict(classification=_label, segmentation=_classes, detection=_objects)
