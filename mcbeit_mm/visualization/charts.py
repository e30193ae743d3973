"""Matplotlib figures without a display; matplotlib is imported on the first call."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    """Plot lines to compare: a panel per title, two or three a row, of name -> points (x, y).

    A single line has no legend.
    """
    columns = min(3, max(2, len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = blank_figure(9.6, 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for color, (name, points) in zip((BLUE, GRAY, ORANGE), lines.items(), strict=False):
            x, y = np.reshape(points, (-1, 2)).T
            marker = 'o' if len(points) < 20 else ''
            axes.plot(x, y, color=color, linewidth=1.4, marker=marker, markersize=4, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.2)
        if title.endswith('%'):
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def spread_figure(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> 'Figure':
    """Plot repeated measurements: a panel per title, with a row for each name -> values.

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
        tidy(axes)
        axes.grid(axis='x', color='#e6e9ec', linewidth=0.8)
    return figure


def tidy(axes: 'Axes') -> None:
    """Apply the common style: two spines, a faint grid, small labels."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#e6e9ec', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
