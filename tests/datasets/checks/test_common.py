"""Opening images, damaged in every way, and the report."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from mcbeit_mm.datasets.checks.common import Report, check_folder, inspect_image, list_images


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
        (jpeg()[:40], 'not an image|truncated'),
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
    assert inspect_image(str(path), decode=False).error == ''


def test_broken_link(tmp_path):
    (tmp_path / 'a.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    assert 'link' in inspect_image(str(tmp_path / 'a.jpg')).error


@pytest.mark.parametrize(
    'name, mode, note',
    [
        ('a.jpg', 'CMYK', 'CMYK'),
        ('a.png', 'P', 'palette'),
        ('a.png', 'I;16', '16-bit'),
        ('a.png', 'RGBA', 'transparency'),
    ],
)
def test_modes_that_loaders_convert_are_notes(tmp_path, name, mode, note):
    image = picture().convert('I').convert(mode) if mode == 'I;16' else picture(mode=mode)
    image.save(tmp_path / name)
    info = inspect_image(str(tmp_path / name))
    assert info.error == '' and info[1:3] == (40, 24)
    assert len(info.notes) == 1 and note in info.notes[0]


def test_other_extension_and_rotation_are_notes(tmp_path):
    picture().save(tmp_path / 'a.jpeg', 'PNG')  # as n02105855_2933.JPEG of ImageNet
    assert inspect_image(str(tmp_path / 'a.jpeg')).notes[0].startswith('PNG content')
    (tmp_path / 'b.jpg').write_bytes(rotated())
    info = inspect_image(str(tmp_path / 'b.jpg'))
    assert info[1:3] == (24, 40), 'the size that cv2 gives'
    assert 'EXIF' in info.notes[0]


def test_size_is_that_of_cv2(tmp_path):
    import cv2

    path = str(tmp_path / 'b.jpg')
    (tmp_path / 'b.jpg').write_bytes(rotated())
    height, width = cv2.imread(path).shape[:2]
    assert inspect_image(path)[1:3] == (width, height)


def test_format_that_cv2_does_not_read(tmp_path):
    picture().save(tmp_path / 'a.jpg', 'ICO')
    assert 'ICO content' in inspect_image(str(tmp_path / 'a.jpg')).error


def test_file_names(tmp_path):
    for name in ('good.JPG', 'notes.txt', '.hidden.jpg', 'line\nbreak.jpg', 'deep/ outer.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    report = Report()
    names = list_images(tmp_path, report)
    assert names == ['deep/ outer.png', 'good.JPG', 'line\nbreak.jpg']
    assert [len(places) for places in report.errors.values()] == [2]
    assert sorted(len(places) for places in report.notes.values()) == [1, 1]


def test_report_counts_and_lists_everything_on_request():
    report = Report(facts=['fact'])
    assert report.text() == 'fact\nall is well'
    report.error('odd file', *'abcde')
    report.error('no folder')
    report.note('remark', 'x')
    assert 'ERROR 5 x odd file: a, b, c, ...' in report.text()
    assert report.text().endswith('6 problems')
    assert '    e\n' in report.text(examples=None)


@pytest.mark.parametrize('workers', [1, 2])
def test_folder(tmp_path, workers):
    (tmp_path / 'deep').mkdir()
    for i in range(5):
        (tmp_path / 'deep' / f'{i}.jpg').write_bytes(jpeg())
    report = check_folder(tmp_path, workers=workers)
    assert not report.errors and report.facts[0] == '5 images'
    assert 'width 40 / 40 / 40, height 24 / 24 / 24' in report.facts[1]
    (tmp_path / 'bad.jpg').write_bytes(jpeg()[:-200])
    report = check_folder(tmp_path, workers=workers)
    assert report.errors == {'truncated image (copy it again)': [f'{tmp_path.name}/bad.jpg']}


def test_folder_without_images(tmp_path):
    assert 'no image' in next(iter(check_folder(tmp_path).errors))
