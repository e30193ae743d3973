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


def test_curves_are_drawn_as_given():
    curves = {name: [(1, i), (5, i + 2)] for i, name in enumerate('abcd')}
    figure = charts.curves_figure(curves)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == list('abcd')
    for i, axes in enumerate(shown):
        assert axes.lines[0].get_xydata().tolist() == [[1, i], [5, i + 2]]


def test_compared_lines_are_a_panel_per_title():
    lines = {
        'k-NN': {'x': [(0, 10.0), (1, 20.0)], 'y': [(0, 5.0), (1, 4.0)]},
        'probe': {'x': [(0, 1.0)]},
    }
    first, second = charts.compared_figure(lines, 'block').axes
    assert [line.get_label() for line in first.lines] == ['x', 'y']
    assert first.lines[1].get_ydata().tolist() == [5.0, 4.0]
    assert second.lines[0].get_ydata().tolist() == [1.0]


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


def test_confusions_are_percent_of_each_row():
    matrix = np.array([[3, 1], [0, 0]])
    figure = charts.confusion_figure({'x': matrix, 'y': matrix.T}, ['a', 'b'])
    first, second = figure.axes
    assert first.images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [text.get_text() for text in first.texts] == ['75', '25', '', '']
    assert [label.get_text() for label in first.get_yticklabels()] == ['a', 'b']
    assert second.get_title() == 'y' and first.get_ylabel() == 'truth'
    many = charts.confusion_figure({'x': np.eye(20)}, list(map(str, range(20))))
    assert not many.axes[0].texts and not many.axes[1].axison


def test_bars_of_classes_are_the_values():
    values = {'x': np.array([1.0, np.nan, 3.0]), 'y': np.array([2.0, 4.0, 6.0])}
    (axes,) = charts.classes_figure({'IoU': values}, list('abc')).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[1, 0, 3], [2, 4, 6]]
    left, right = axes.containers
    assert left[0].get_x() < right[0].get_x() < left[1].get_x()
