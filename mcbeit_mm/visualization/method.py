"""One picture of the method: image, mask, multi-choice targets, reconstruction."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..mcbeit import MCBEiT
from .charts import BLUE, RED, blank_figure, draw_choice, show_masked
from .targets import codes_in_place, multi_choice, predict, reconstructions, select_patches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {'red': RED, 'blue': BLUE}


def method_figure(
    model: MCBEiT, inputs: Sequence[Tensor], mask: Tensor, image: int = 0, top: int = 5
) -> 'Figure':
    """Image, mask, targets of two masked patches and the student's reconstruction, left to right.

    Args:
        inputs: views as for `MCBEiT.loss`.
        mask: (B, h, w).
        image: index in the batch.
        top: codes shown per patch.
    """
    shown = predict(model, [view[image : image + 1] for view in inputs], mask[image : image + 1])
    pictures = {name: p[0] for name, p in reconstructions(model.tokenizer, shown).items()}
    patches = select_patches(shown, 0)[::2]  # the least and the most ambiguous
    choices = multi_choice(model, shown, 0, patches, top)
    outlined = dict(zip(COLORS.values(), (choice.patch for choice in choices), strict=False))
    hidden = shown.mask[0].cpu().numpy()
    figure = blank_figure(9, 3.2)
    grid = figure.add_gridspec(2, 4, width_ratios=(1.15, 1.15, 1.9, 1.15))
    first, second, last = (figure.add_subplot(grid[:, i]) for i in (0, 1, 3))
    show_masked(first, pictures['original'], np.zeros_like(hidden), {})
    show_masked(second, pictures['original'], hidden, outlined)
    show_masked(last, pictures['student, average'], np.zeros_like(hidden), outlined)
    _label(first, 'image', 'seen by the tokenizer')
    _label(second, 'mask', f'{100 * (1 - hidden.mean()):.0f} % seen by the student')
    _label(last, 'reconstruction', "from the student's predictions")
    for i, (name, choice) in enumerate(zip(COLORS, choices, strict=False)):
        axes = figure.add_subplot(grid[i, 2])
        draw_choice(axes, choice, codes_in_place(model.tokenizer, shown, 0, choice))
        axes.set_title(f'top codes of the {name} patch', fontsize=10, color=COLORS[name])
        axes.set_ylabel('probability', fontsize=8.5)
        axes.yaxis.get_major_locator().set_params(nbins=3)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc='outside lower center', ncols=3, fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def _label(axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(below, fontsize=8.5)
