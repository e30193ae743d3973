"""Building blocks of a self-contained HTML page: pictures inside the file, tables, captions."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2733; background: #fff; max-width: 1000px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .3rem;
     border-bottom: 1px solid #dde2e7; }
nav a { margin-right: 1.1rem; color: #2f6fbb; text-decoration: none; font-size: .92rem; }
figure { margin: .8rem 0; }
figure > img { width: 100%; height: auto; }
figcaption, .note { color: #55616d; font-size: .92rem; max-width: 54rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #e6e9ec; text-align: left;
         vertical-align: top; }
th { font-weight: 600; background: #f6f8fa; }
td.number, th.number { text-align: right; }
td { overflow-wrap: anywhere; }
table.pictures td, table.pictures th { padding: .2rem; border: 0; background: none;
                                       text-align: center; }
table.pictures { width: 100%; table-layout: fixed; font-size: .9rem; }
table.pictures img { width: 100%; image-rendering: pixelated; border-radius: 3px; display: block; }
table.samples th { width: 6rem; text-align: left; vertical-align: middle; }
table.samples img { image-rendering: auto; }
.right { color: #1b7f3b; } .wrong { color: #b3261e; }
.legend { font-size: .85rem; } .legend span { margin-right: .9rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; }
.problem { color: #b3261e; font-size: .92rem; margin: .3rem 0; }
.codes img { width: 36px; height: 36px; margin: 2px; image-rendering: pixelated; }
"""


def image(picture: 'np.ndarray | Figure', alt: str) -> str:
    """An <img> with the PNG inside, of a uint8 array (H, W, 3) or a chart."""
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        Image.fromarray(picture).save(buffer, 'png')
    else:
        picture.savefig(buffer, format='png')
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def figure(chart: 'Figure', alt: str, caption: str) -> str:
    """A chart with a caption, plain text."""
    return f'<figure>{image(chart, alt)}<figcaption>{escape(caption)}</figcaption></figure>\n'


def note(text: str) -> str:
    """A paragraph in the style of the captions."""
    return f'<p class="note">{escape(text)}</p>\n'


def table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """A table of plain text; below a header all columns but the first hold numbers."""
    kind = ' class="number"' if header else ''

    def line(cells: Sequence[str], tag: str) -> str:
        first, *rest = (escape(cell) for cell in cells)
        rest = ''.join(f'<{tag}{kind}>{cell}</{tag}>' for cell in rest)
        return f'<tr><{tag}>{first}</{tag}>{rest}</tr>'

    head = f'<thead>{line(header, "th")}</thead>' if header else ''
    return f'<table>{head}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table>\n'
