"""Values -> matplotlib figures, without a display; matplotlib is imported on the first call."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .targets import MultiChoice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

BLUE, ORANGE, GRAY, RED, BLACK = '#2f6fbb', '#e8833a', '#9aa3ad', '#d6332b', '#1d2733'
Points = Sequence[tuple[float, float]]


def blank_figure(width: float, height: float) -> 'Figure':
    """Return an empty chart, sides in inches; ImportError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # needs no display, unlike pyplot
    except ImportError as error:
        raise ImportError('charts need matplotlib: pip install matplotlib') from error
    return Figure(figsize=(width, height), dpi=110, layout='constrained')


def curves_figure(panels: Mapping[str, Mapping[str, Points]], xlabel: str) -> 'Figure':
    """Lines to compare: a panel per title, two or three a row, in it name -> points (x, y).

    A line with the name of its panel needs no legend.
    """
    columns = min(3, max(2, len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = blank_figure(9.6, 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for color, (name, points) in zip((BLUE, GRAY, ORANGE), lines.items(), strict=False):
            x, y = zip(*points, strict=True)
            marker = 'o' if len(points) < 20 else ''
            axes.plot(x, y, color=color, linewidth=1.4, marker=marker, markersize=4, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.2)
        if title.endswith('%'):
            axes.set_ylim(bottom=0)
        if list(lines) != [title]:
            axes.legend(fontsize=8, frameon=False)
        _tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def spread_figure(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> 'Figure':
    """Repeated measurements: a panel per title, in it name -> values, a row each.

    Dots are the values, bars the mean and the sample standard deviation, the dashed line is the
    mean of the first name. Panels share the names.
    """
    names = list(next(iter(panels.values())))
    figure = blank_figure(9.6, 1.1 + 0.3 * len(names))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        for row, (name, values) in enumerate(rows.items()):
            if not len(values):
                continue
            mean, color = np.mean(values), BLUE if row else ORANGE
            spread = np.std(values, ddof=1) if len(values) > 1 else None
            axes.errorbar(mean, row, xerr=spread, fmt='|', color=color, capsize=3, markersize=11)
            axes.plot(values, [row] * len(values), 'o', color=color, markersize=4, alpha=0.5)
            if name == names[0]:
                axes.axvline(mean, color=ORANGE, linewidth=0.9, linestyle='--')
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.margins(x=0.1)
        _tidy(axes)
        axes.grid(axis='x', color='#e6e9ec', linewidth=0.8)
    return figure


def classes_figure(
    title: str, values: Mapping[str, np.ndarray], classes: Sequence[str]
) -> 'Figure':
    """Bars for each class: name -> values (classes,)."""
    figure = blank_figure(9.6, 2.5)
    axes = figure.subplots()
    width = 0.8 / len(values)
    colors = (BLUE, GRAY, ORANGE)
    for i, (color, (name, heights)) in enumerate(zip(colors, values.items(), strict=False)):
        x = np.arange(len(classes)) + (i - (len(values) - 1) / 2) * width
        axes.bar(x, np.nan_to_num(heights), width, color=color, label=name)
    rotation = dict(rotation=60, ha='right') if len(classes) > 12 else {}
    axes.set_xticks(range(len(classes)), classes, **rotation)
    axes.set_title(title, fontsize=9)
    axes.margins(x=0.01, y=0.18)
    axes.legend(fontsize=8, frameon=False, ncols=len(values), loc='upper right')
    _tidy(axes)
    return figure


def usage_figure(counts: np.ndarray) -> 'Figure':
    """Percent of the patches per code, most frequent code first."""
    figure = blank_figure(9.6, 2.5)
    axes = figure.subplots()
    shares = 100 * np.sort(counts)[::-1] / counts.sum()
    axes.fill_between(np.arange(len(shares)), shares, step='mid', color=BLUE)
    axes.axhline(100 / len(shares), color=ORANGE, linewidth=1.2, label='all codes equally frequent')
    axes.set(xlabel='codes, most frequent first', ylabel='% of patches', xlim=(0, len(shares)))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    _tidy(axes)
    return figure


def multi_choice_figure(
    picture: np.ndarray, mask: np.ndarray, choice: MultiChoice, thumbnails: np.ndarray | None
) -> 'Figure':
    """One patch of a picture (H, W, 3): its place, its codes as bars, its affinity as a map.

    `mask` is (h, w); `thumbnails` (K, s, s, 3) show the codes of `choice`, if there is a decoder.
    """
    figure = blank_figure(9.6, 2.7)
    where, bars, heat = figure.subplots(1, 3, width_ratios=(1, 2.4, 1.15))
    show_masked(where, picture, mask, {RED: choice.patch})
    where.set_title('masked image', fontsize=9)
    shown = heat.imshow(choice.affinity * choice.affinity.size, cmap='viridis')
    heat.set(xticks=[], yticks=[])
    heat.set_title('affinity (1 = average)', fontsize=9)
    heat.add_patch(_outline(choice.patch, RED))
    figure.colorbar(shown, ax=heat, shrink=0.8).ax.tick_params(labelsize=7)
    draw_choice(bars, choice, thumbnails)
    bars.set_ylim(top=1.25 * bars.get_ylim()[1])  # room for the legend
    bars.legend(fontsize=7.5, frameon=False, loc='upper center', ncols=3)
    bars.set_title('probability of the most likely codes', fontsize=9)
    return figure


def show_masked(
    axes: 'Axes', picture: np.ndarray, mask: np.ndarray, outlined: Mapping[str, tuple[int, int]]
) -> None:
    """Picture (H, W, 3) with a veil over masked patches (h, w); color -> patch to outline."""
    extent = (-0.5, mask.shape[1] - 0.5, mask.shape[0] - 0.5, -0.5)  # patches as units
    axes.imshow(picture, extent=extent)
    axes.imshow(np.dstack([np.full((*mask.shape, 3), 0.5), 0.6 * mask]), extent=extent)
    axes.set(xticks=[], yticks=[])
    for color, patch in outlined.items():
        axes.add_patch(_outline(patch, color))


def draw_choice(axes: 'Axes', choice: MultiChoice, thumbnails: np.ndarray | None) -> None:
    """Probabilities of the codes before and after refinement, and as the student predicts them."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    x = np.arange(len(choice.codes))
    axes.bar(x - 0.2, choice.before, 0.4, color=GRAY, label='before refinement')
    axes.bar(x + 0.2, choice.after, 0.4, color=ORANGE, label='after: the target')
    axes.plot(x, choice.predicted, 'o', color=BLACK, markersize=4, label="student's prediction")
    axes.set_xticks(x, [str(code) for code in choice.codes])
    axes.set_ylim(bottom=0)
    _tidy(axes)
    if thumbnails is None:
        return
    axes.tick_params(axis='x', length=0, pad=26)  # room for the thumbnails
    for i, thumbnail in enumerate(thumbnails):
        image = OffsetImage(thumbnail, zoom=20 / len(thumbnail), interpolation='nearest')
        place = dict(xycoords=('data', 'axes fraction'), box_alignment=(0.5, 1.15), frameon=False)
        axes.add_artist(AnnotationBbox(image, (i, 0), pad=0, annotation_clip=False, **place))


def _outline(patch: tuple[int, int], color: str) -> 'Rectangle':
    from matplotlib.patches import Rectangle

    row, column = patch
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=2)


def _tidy(axes: 'Axes') -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e6e9ec', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
