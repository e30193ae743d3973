"""Read back the HTML of a report."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {'meta', 'img'}


class Page(HTMLParser):
    """Checks nesting; collects headings, links, pictures and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.titles, self.links, self.pictures, self.texts = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ('src', 'href'):
                self.links.append(value)
            if name == 'src':
                assert value.startswith('data:image/png;base64,')
                data = base64.b64decode(value.partition(',')[2], validate=True)
                self.pictures.append(np.asarray(Image.open(io.BytesIO(data))))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append(data)
            if self.open[-1] == 'h2':
                self.titles.append(data)

    @property
    def text(self):
        return ' '.join(self.texts)
