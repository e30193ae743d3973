"""Charts show the values they are given."""

import builtins

import numpy as np
import pytest

from mcbeit_mm.visualization import charts
from mcbeit_mm.visualization.targets import MultiChoice


def choice():
    rng = np.random.default_rng(0)
    before, after, predicted = rng.random((3, 5))
    return MultiChoice(
        (1, 2), np.array([7, 3, 11, 0, 4]), before, after, predicted, rng.random((3, 4))
    )


def test_bars_and_map_are_the_values_of_the_choice():
    picture = np.zeros((12, 16, 3), np.uint8)
    mask = np.ones((3, 4), bool)
    thumbnails = np.full((5, 4, 4, 3), 99, np.uint8)
    figure = charts.multi_choice_figure(picture, mask, choice(), thumbnails)
    where, bars, heat = figure.axes[:3]
    before, after = bars.containers
    np.testing.assert_array_equal([bar.get_height() for bar in before], choice().before)
    np.testing.assert_array_equal([bar.get_height() for bar in after], choice().after)
    np.testing.assert_array_equal(bars.lines[0].get_ydata(), choice().predicted)
    assert [label.get_text() for label in bars.get_xticklabels()] == ['7', '3', '11', '0', '4']
    assert sum('AnnotationBbox' in type(artist).__name__ for artist in bars.artists) == 5
    np.testing.assert_allclose(heat.images[0].get_array(), 12 * choice().affinity)
    for axes in (where, heat):
        assert axes.patches[0].get_xy() == (1.5, 0.5)  # around column 2, row 1


def test_no_thumbnails_without_a_decoder():
    picture, mask = np.zeros((12, 16, 3), np.uint8), np.ones((3, 4), bool)
    figure = charts.multi_choice_figure(picture, mask, choice(), None)
    assert not figure.axes[1].artists


def test_lines_are_drawn_as_given_a_panel_per_title():
    panels = {
        'k-NN': {'x': [(0, 10.0), (1, 20.0)], 'y': [(0, 5.0), (1, 4.0)]},
        'probe': {'probe': [(0, 1.0)]},
        'c': {'c': [(1, 2)]},
        'd': {'d': [(1, 3)]},
    }
    figure = charts.curves_figure(panels, 'block')
    first, second, *rest = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in (first, second, *rest)] == list(panels)
    assert [line.get_label() for line in first.lines] == ['x', 'y']
    assert first.lines[1].get_xydata().tolist() == [[0, 5.0], [1, 4.0]]
    assert second.lines[0].get_ydata().tolist() == [1.0]
    assert first.get_legend() and not second.get_legend()  # the title says it


def test_usage_is_sorted_shares_in_percent():
    axes = charts.usage_figure(np.array([1, 0, 3, 4])).axes[0]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert set(np.round(heights, 6)) == {0.0, 12.5, 37.5, 50.0}
    assert axes.lines[0].get_ydata() == pytest.approx([25, 25])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match='pip install matplotlib'):
        charts.blank_figure(1, 1)


def test_bars_of_classes_are_the_values():
    values = {'x': np.array([1.0, np.nan, 3.0]), 'y': np.array([2.0, 4.0, 6.0])}
    (axes,) = charts.classes_figure('IoU', values, list('abc')).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[1, 0, 3], [2, 4, 6]]
    left, right = axes.containers
    assert left[0].get_x() < right[0].get_x() < left[1].get_x()


def test_repeated_measurements_show_values_and_mean():
    rows = {'base': [1.0, 3.0], 'other': [5.0], 'missing': []}
    (axes,) = charts.spread_figure({'top-1': rows}).axes
    dots = [line for line in axes.lines if line.get_marker() == 'o']
    assert [list(line.get_xdata()) for line in dots] == [[1.0, 3.0], [5.0]]
    assert 2.0 in [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == '--']
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
