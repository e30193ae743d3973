"""The HTML of a report is well-formed, escaped and self-contained."""

import numpy as np
import pytest
from html_page import Page
from jinja2 import UndefinedError

from mcbeit_mm.visualization.charts import usage_figure
from mcbeit_mm.visualization.page import Section, render


def test_text_is_escaped_and_pictures_come_back():
    picture = np.random.randint(0, 255, (5, 7, 3), dtype=np.uint8)
    sections = [
        Section('facts', 'A > B', dict(rows=[['<i>', 'a < b & c']])),
        Section('reconstructions', 'two', dict(pictures={'"quoted"': [picture]}, count=1)),
    ]
    page = Page(render('<title>', sections))
    np.testing.assert_array_equal(page.pictures[0], picture)
    assert page.titles == ['A > B', 'two'] and page.links[:2] == ['#s1', '#s2']
    for text in ('<title>', '<i>', 'a < b & c', '"quoted"'):
        assert text in page.texts
    assert 'learns from unlabeled images' not in page.text  # no pretraining run in it


def test_charts_are_embedded_and_only_pngs_are_linked():
    chart = usage_figure(np.array([3, 1]))
    page = Page(render('x', [Section('curves', 'curves', dict(chart=chart, names='loss'))]))
    assert page.pictures[0].shape[:2] == (275, 1056)  # inches times dpi
    assert [link[:14] for link in page.links] == ['#s1', 'data:image/png']
    assert 'learns from unlabeled images' in page.text


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError, match='chart'):
        render('x', [Section('curves', 'curves', dict(names='loss'))])
