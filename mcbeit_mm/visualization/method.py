"""Draw the method in one picture: image, mask, multi-choice targets, reconstruction."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..mcbeit import MCBEiT
from ..tokenizers.base import to_uint8
from .charts import BLACK, BLUE, GRAY, ORANGE, RED, blank_figure, tidy
from .targets import (
    MultiChoice,
    can_decode,
    codes_in_place,
    multi_choice,
    predict,
    reconstructions,
    select_patches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

COLORS = {'red': RED, 'blue': BLUE}


def method_figure(
    model: MCBEiT, inputs: Sequence[Tensor], mask: Tensor, image: int = 0, top: int = 5
) -> 'Figure':
    """Draw image, mask, targets of two masked patches and the student's reconstruction.

    Without a decoder there is no reconstruction.

    Args:
        inputs: views as for `MCBEiT.loss`.
        mask: (B, h, w).
        image: index in the batch.
        top: codes shown per patch.
    """
    shown = predict(model, [view[image : image + 1] for view in inputs], mask[image : image + 1])
    tokenizer, decodes = model.tokenizer, can_decode(model.tokenizer)
    patches = select_patches(shown, 0, count=2)  # the least and the most ambiguous
    choices = dict(zip(COLORS, multi_choice(model, shown, 0, patches, top), strict=False))
    hidden, nothing = shown.mask[0].cpu().numpy(), np.zeros(shown.mask.shape[1:])
    figure = blank_figure(9.6, 3.4)
    grid = figure.add_gridspec(2, 5, width_ratios=(1.2, 1.2, 1.9, 0.7, 1.2))
    first, second, last = (figure.add_subplot(grid[:, i]) for i in (0, 1, 4))
    picture = to_uint8(shown.tokenizer_view)[0]
    show_masked(first, picture, nothing, {})
    show_masked(second, picture, hidden, choices)
    _label(first, 'image', 'seen by the tokenizer')
    _label(second, 'mask', f'{100 * (1 - hidden.mean()):.0f} % seen by the student')
    for i, (name, choice) in enumerate(choices.items()):
        codes = codes_in_place(tokenizer, shown, 0, choice) if decodes else None
        draw_choice(figure.add_subplot(grid[i, 2]), choice, codes, name)
        draw_affinity(figure.add_subplot(grid[i, 3]), choice, name)
    handles = figure.axes[3].get_legend_handles_labels()
    figure.legend(*handles, loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    if decodes:
        show_masked(last, reconstructions(tokenizer, shown)['student'][0], nothing, choices)
        _label(last, 'reconstruction', 'by the student')
    else:
        last.set_axis_off()
    return figure


def show_masked(
    axes: 'Axes', picture: np.ndarray, mask: np.ndarray, choices: Mapping[str, MultiChoice]
) -> None:
    """Draw a picture (H, W, 3), veil masked patches (h, w), outline the patches of choices."""
    extent = (-0.5, mask.shape[1] - 0.5, mask.shape[0] - 0.5, -0.5)  # patches as units
    axes.imshow(picture, extent=extent)
    axes.imshow(np.dstack([np.full((*mask.shape, 3), 0.5), 0.6 * mask]), extent=extent)
    for name, choice in choices.items():
        axes.add_patch(_outline(choice, name))


def draw_affinity(axes: 'Axes', choice: MultiChoice, name: str) -> None:
    """Draw the affinity of all patches to the patch of the choice."""
    axes.imshow(choice.affinity, cmap='viridis')
    axes.add_patch(_outline(choice, name))
    _label(axes, 'affinity', '')


def draw_choice(
    axes: 'Axes', choice: MultiChoice, thumbnails: np.ndarray | None, name: str
) -> None:
    """Plot the probabilities of the codes before and after refinement, and the student's.

    `thumbnails` (K, s, s, 3) show the codes, if there is a decoder.
    """
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    x = np.arange(len(choice.codes))
    axes.bar(x - 0.2, choice.before, 0.4, color=GRAY, label='before refinement')
    axes.bar(x + 0.2, choice.after, 0.4, color=ORANGE, label='after: the target')
    axes.plot(x, choice.predicted, 'o', color=BLACK, markersize=4, label="student's prediction")
    axes.set_xticks(x, [str(code) for code in choice.codes])
    axes.set_ylim(bottom=0)
    axes.set_title(f'top codes of the {name} patch', fontsize=10, color=COLORS[name])
    axes.set_ylabel('probability', fontsize=8.5)
    axes.yaxis.get_major_locator().set_params(nbins=3)
    tidy(axes)
    if thumbnails is None:
        return
    axes.tick_params(axis='x', length=0, pad=26)  # room for the thumbnails
    for i, thumbnail in enumerate(thumbnails):
        image = OffsetImage(thumbnail, zoom=20 / len(thumbnail), interpolation='nearest')
        place = dict(xycoords=('data', 'axes fraction'), box_alignment=(0.5, 1.15), frameon=False)
        axes.add_artist(AnnotationBbox(image, (i, 0), pad=0, annotation_clip=False, **place))


def _outline(choice: MultiChoice, name: str) -> 'Rectangle':
    from matplotlib.patches import Rectangle

    row, column = choice.patch
    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLORS[name], linewidth=2
    )


def _label(axes: 'Axes', title: str, below: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(below, fontsize=8.5)
