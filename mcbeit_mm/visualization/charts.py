"""Values -> matplotlib figures; no display needed, matplotlib imported on the first call."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .targets import MultiChoice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

BLUE, ORANGE, GREY, RED, BLACK = '#2f6fbb', '#e8833a', '#9aa3ad', '#d6332b', '#1d2733'
Points = Sequence[tuple[float, float]]


def blank_figure(width: float, height: float) -> 'Figure':
    """Return an empty chart, sides in inches; ImportError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # needs no display, unlike pyplot
    except ImportError as error:
        raise ImportError('charts need matplotlib: pip install matplotlib') from error
    return Figure(figsize=(width, height), dpi=110, layout='constrained')


def curves_figure(curves: Mapping[str, Points], xlabel: str = 'iteration') -> 'Figure':
    """Small multiples, three a row: title -> points (x, y)."""
    rows = math.ceil(len(curves) / 3)
    figure = blank_figure(9.6, 2.3 * rows)
    grid = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes, (title, points) in zip(grid, curves.items(), strict=False):
        marker = 'o' if len(points) < 20 else ''
        axes.plot(
            *zip(*points, strict=True), color=BLUE, linewidth=1.4, marker=marker, markersize=3
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel, fontsize=8)
        _tidy(axes)
    for axes in grid[len(curves) :]:
        axes.set_axis_off()
    return figure


def compared_figure(panels: Mapping[str, Mapping[str, Points]], xlabel: str) -> 'Figure':
    """Lines to compare: a panel per title, two or three a row, in it name -> points (x, y)."""
    columns = min(3, max(2, len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = blank_figure(9.6, 2.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for color, (name, points) in zip((BLUE, GREY, ORANGE), lines.items(), strict=False):
            marker = 'o' if len(points) < 20 else ''
            axes.plot(
                *zip(*points, strict=True), color=color, marker=marker, markersize=4, label=name
            )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.2)
        if title.endswith('%'):
            axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
        _tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def spread_figure(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> 'Figure':
    """Repeated measurements side by side: a panel per title, in it name -> values, a row each.

    Dots are the values, bars the mean and the sample standard deviation; a dashed line continues
    the mean of the first name. Panels share the names.
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


def confusion_figure(matrices: Mapping[str, np.ndarray], classes: Sequence[str]) -> 'Figure':
    """Confusion matrices by name, truth in rows, as percent of each row; numbers if 12 or fewer."""
    figure = blank_figure(9.6, 4.6)
    panels = figure.subplots(1, max(2, len(matrices)), squeeze=False)[0]
    few = len(classes) <= 12
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=False):
        shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel('prediction', fontsize=8)
        axes.set_ylabel('truth', fontsize=8)
        ticks = range(len(classes)) if few else []
        axes.set_xticks(ticks, classes if few else [], rotation=60, ha='right')
        axes.set_yticks(ticks, classes if few else [])
        axes.tick_params(labelsize=7, length=0)
        for (row, column), share in np.ndenumerate(shares) if few else ():
            color = 'white' if share > 55 else BLACK
            text = f'{share:.0f}' if matrix[row, column] else ''
            axes.text(column, row, text, ha='center', va='center', fontsize=7, color=color)
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    return figure


def classes_figure(
    panels: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str]
) -> 'Figure':
    """Bars for each class, in percent: a panel per title, in it name -> values (classes,)."""
    figure = blank_figure(9.6, 2.5 * len(panels))
    for axes, (title, values) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        width = 0.8 / len(values)
        for i, (color, (name, heights)) in enumerate(
            zip((BLUE, GREY, ORANGE), values.items(), strict=False)
        ):
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
    """Share of the patches in percent that each code takes, most frequent first."""
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
    """One patch of a picture (H, W, 3): where it is, its codes as bars, its affinity as a map.

    `mask` is (h, w); `thumbnails` (K, s, s, 3) show the codes of `choice`, if there is a decoder.
    """
    figure = blank_figure(9.6, 2.7)
    where, bars, heat = figure.subplots(1, 3, width_ratios=(1, 2.4, 1.15))
    extent = (-0.5, mask.shape[1] - 0.5, mask.shape[0] - 0.5, -0.5)  # patches as units
    where.imshow(picture, extent=extent)
    where.imshow(np.dstack([np.full((*mask.shape, 3), 0.5), 0.6 * mask]), extent=extent)
    where.set_title('patch (red) of the image', fontsize=9)
    shown = heat.imshow(choice.affinity * choice.affinity.size, cmap='viridis')
    heat.set_title('affinity (1 = average)', fontsize=9)
    figure.colorbar(shown, ax=heat, shrink=0.8).ax.tick_params(labelsize=7)
    for axes in (where, heat):
        axes.set(xticks=[], yticks=[])
        axes.add_patch(_outline(*choice.patch))
    _draw_bars(bars, choice, thumbnails)
    return figure


def _draw_bars(axes: 'Axes', choice: MultiChoice, thumbnails: np.ndarray | None) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    x = np.arange(len(choice.codes))
    axes.bar(x - 0.2, choice.before, 0.4, color=GREY, label='before refinement')
    axes.bar(x + 0.2, choice.after, 0.4, color=ORANGE, label='after: the target')
    axes.plot(x, choice.predicted, 'o', color=BLACK, markersize=4, label="the student's prediction")
    axes.set_xticks(x, [str(code) for code in choice.codes])
    axes.set_title('probability of the likeliest codes', fontsize=9)
    highest = max(choice.before.max(), choice.after.max(), choice.predicted.max())
    axes.set_ylim(0, 1.25 * highest)  # the legend lies above the bars
    axes.legend(fontsize=7.5, frameon=False, loc='upper center', ncols=3)
    _tidy(axes)
    if thumbnails is None:
        return
    axes.tick_params(axis='x', length=0, pad=26)  # room for the thumbnails
    for i, thumbnail in enumerate(thumbnails):
        image = OffsetImage(thumbnail, zoom=20 / len(thumbnail), interpolation='nearest')
        place = dict(xycoords=('data', 'axes fraction'), box_alignment=(0.5, 1.15), frameon=False)
        axes.add_artist(AnnotationBbox(image, (i, 0), pad=0, annotation_clip=False, **place))


def _outline(row: int, column: int) -> 'Rectangle':
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=2)


def _tidy(axes: 'Axes') -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e6e9ec', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
