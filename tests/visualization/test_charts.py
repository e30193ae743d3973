"""Charts show the values they are given."""

import builtins

import pytest

from mcbeit_mm.visualization import charts


def test_lines_are_drawn_as_given_a_panel_per_title():
    panels = {
        'k-NN': {'x': [(0, 10.0), (1, 20.0)], 'y': [(0, 5.0), (1, 4.0)]},
        'probe': {'probe': [(0, 1.0)], 'empty': []},
        'c': {'c': [(1, 2)]},
        'd': {'d': [(1, 3)]},
    }
    figure = charts.curves_figure(panels, 'block')
    first, second, *rest = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in (first, second, *rest)] == list(panels)
    assert [line.get_label() for line in first.lines] == ['x', 'y']
    assert first.lines[1].get_xydata().tolist() == [[0, 5.0], [1, 4.0]]
    assert second.lines[0].get_ydata().tolist() == [1.0]
    assert second.lines[1].get_xydata().tolist() == []
    assert first.get_legend() and not rest[0].get_legend()  # the title says it


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match='pip install matplotlib'):
        charts.blank_figure(1, 1)


def test_repeated_measurements_show_values_and_mean():
    rows = {'base': [1.0, 3.0], 'other': [5.0], 'missing': []}
    (axes,) = charts.spread_figure({'top-1': rows}).axes
    dots = [line for line in axes.lines if line.get_marker() == 'o']
    assert [list(line.get_xdata()) for line in dots] == [[1.0, 3.0], [5.0]]
    assert 2.0 in [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == '--']
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
