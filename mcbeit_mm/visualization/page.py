"""Render sections of a report as one self-contained HTML page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A heading and the `values` below it, laid out by the macro `kind` of report.html.j2."""

    kind: str
    title: str
    values: dict[str, Any]


def data_uri(picture: 'np.ndarray | Figure') -> str:
    """Encode a uint8 array (H, W, 3) or a chart as an inline PNG."""
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        Image.fromarray(picture).save(buffer, 'png')
    else:
        picture.savefig(buffer, format='png')
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def render(title: str, sections: Sequence[Section]) -> str:
    """Fill the template; all text is escaped, all pictures are embedded."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters['png'] = data_uri
    env.globals['zip'] = zip
    return env.get_template('report.html.j2').render(title=title, sections=sections)
