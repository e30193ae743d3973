"""Opening images, intact and damaged, and the report."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from mcbeit_mm.datasets.checks.common import Opened, Report, inspect_image, list_images


def picture(width=40, height=24, mode='RGB'):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def jpeg(**options):
    buffer = io.BytesIO()
    picture().save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


@pytest.mark.parametrize(
    'content, error',
    [
        (b'', 'empty file'),
        (b'<html>404</html>' * 9, 'not an image'),
        (jpeg()[:-200], 'truncated image'),
        (jpeg()[:40], 'not an image|damaged header'),
    ],
)
def test_damaged_files(tmp_path, content, error):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    info = inspect_image(str(path))
    assert re.match(error, info.error), info


def test_header_only_passes_truncated_files(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(jpeg()[:-200])
    assert inspect_image(str(path), fast=True).error == ''
    picture().save(tmp_path / 'a.png')
    data = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'a.png').write_bytes(data[:-200])
    assert inspect_image(str(tmp_path / 'a.png'), fast=True).error == ''
    assert inspect_image(str(tmp_path / 'a.png')).error.startswith('truncated image')


def test_broken_link(tmp_path):
    (tmp_path / 'a.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    assert 'link' in inspect_image(str(tmp_path / 'a.jpg')).error


@pytest.mark.parametrize('mode', ['CMYK', 'L', 'P', 'RGBA', 'I;16'])
def test_modes_that_are_converted_are_no_errors(tmp_path, mode):
    image = picture().convert('I').convert(mode) if mode == 'I;16' else picture(mode=mode)
    image.save(tmp_path / 'a', 'JPEG' if mode in ('CMYK', 'L') else 'PNG')
    assert inspect_image(str(tmp_path / 'a')) == Opened((40, 24))


def test_size_is_that_of_cv2(tmp_path):
    import cv2

    path = str(tmp_path / 'b.jpg')
    (tmp_path / 'b.jpg').write_bytes(rotated())
    height, width = cv2.imread(path).shape[:2]
    assert inspect_image(path).size == (width, height)


def test_formats_as_training_reads_them(tmp_path):
    path = str(tmp_path / 'a.jpg')
    picture().save(path, 'ICO')
    for fast in (False, True):
        assert inspect_image(path, fast).error.startswith('not an image (JPEG, PNG')
    for kind in ('GIF', 'WEBP', 'TIFF'):
        picture().save(path, kind)
        assert inspect_image(path).error == ''
    picture(mode='F').save(path, 'TIFF')
    assert 'damaged image' in inspect_image(path).error


def test_file_names(tmp_path):
    for name in ('good.JPG', 'notes.txt', '.hidden.jpg', 'line\nbreak.jpg', 'deep/ outer.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    report = Report()
    names = list_images(tmp_path, report)
    assert names == ['deep/ outer.png', 'good.JPG', 'line\nbreak.jpg']
    assert [len(places) for places in report.errors.values()] == [2]
    assert list(report.notes.values()) == [
        [f'{tmp_path.name}/.hidden.jpg', f'{tmp_path.name}/notes.txt']
    ]


def test_report_counts_and_lists_everything_on_request():
    report = Report(facts=['fact'])
    assert report.text() == 'fact\nno problems'
    report.error('odd file', 'abcde')
    report.error('no folder')
    report.error('none', [])
    report.note('remark', 'x')
    assert 'ERROR 5 x odd file: a, b, c, ...' in report.text()
    assert report.text().endswith('6 problems') and 'none' not in report.text()
    assert '    e\n' in report.text(examples=None)
