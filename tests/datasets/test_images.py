"""Images of every kind: correct pixels, by slow references, or refused with a reason."""

import io
import struct
import time
import zlib

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS
from PIL import Image

from mcbeit_mm.datasets.checks.common import inspect_image
from mcbeit_mm.datasets.images import (
    MAX_PIXELS,
    BadImageError,
    LoadCheckedImage,
    check_image,
    read_image,
)

HEIGHT, WIDTH = 24, 40


def pixels(channels=3):
    """Smooth colors, RGB: JPEG keeps them within a few steps."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = [6 * x, 9 * y, 255 - 3 * (x + y), 4 * x + 3 * y]
    return np.stack(values[:channels], -1).clip(0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def bgr(rgb):
    return np.asarray(rgb)[:, :, ::-1]


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(pixels(), 'JPEG', exif=exif)


def with_preview():
    """A JPEG whose EXIF segment holds another, complete JPEG."""
    preview = encoded(pixels()[:8, :8], 'JPEG')
    data = encoded(pixels(), 'JPEG')
    segment = b'Exif\x00\x00' + preview
    return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]


ORDINARY = {
    'jpeg': encoded(pixels(), 'JPEG'),
    'progressive': encoded(pixels(), 'JPEG', progressive=True),
    'restart markers': encoded(pixels(), 'JPEG', restart_marker_rows=1),
    'gray jpeg': encoded(pixels()[..., 0], 'JPEG'),
    'cmyk': encoded(Image.fromarray(pixels()).convert('CMYK'), 'JPEG'),
    'rotated': rotated(),
    'preview': with_preview(),
    'bytes after the end': encoded(pixels(), 'JPEG') + b'\x00' * 99 + b'garbage',
    'png': encoded(pixels(), 'PNG'),
    'gray png': encoded(pixels()[..., 0], 'PNG'),
    'gray and alpha': encoded(Image.fromarray(pixels()).convert('LA'), 'PNG'),
    'alpha': encoded(pixels(4), 'PNG'),
    'black and white': encoded(Image.fromarray(pixels()).convert('1'), 'PNG'),
    'palette': encoded(Image.fromarray(pixels()).quantize(16), 'PNG'),
    'palette with transparency': encoded(
        Image.fromarray(pixels()).quantize(16), 'PNG', transparency=3
    ),
    '16-bit': cv2.imencode('.png', pixels().astype(np.uint16) * 257)[1].tobytes(),
    'bmp': encoded(pixels(), 'BMP'),
    'ppm': encoded(pixels(), 'PPM'),
    'tiff': encoded(pixels(), 'TIFF', compression='tiff_lzw'),
    'webp': encoded(pixels(), 'WEBP', lossless=True),
}


@pytest.mark.parametrize('data', ORDINARY.values(), ids=ORDINARY)
def test_ordinary_images_are_bit_equal_to_mmcv(tmp_path, data):
    path = tmp_path / 'a.jpg'
    path.write_bytes(data)
    got = TRANSFORMS.build(dict(type='LoadCheckedImage'))(dict(img_path=str(path)))
    expected = LoadImageFromFile()(dict(img_path=str(path)))
    assert got.keys() == expected.keys()
    assert got['img'].dtype == expected['img'].dtype
    assert np.array_equal(got['img'], expected['img'])
    assert got['ori_shape'] == got['img_shape'] == expected['img_shape']


def test_exif_rotation_is_applied():
    assert read_image(rotated()).shape == (WIDTH, HEIGHT, 3)


def test_cmyk_as_adobe_stores_it_inverted():
    cmyk = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    cmyk[:, :10, 0], cmyk[:, 10:20, 1], cmyk[:, 20:30, 2], cmyk[:, 30:, 3] = 255, 255, 255, 255
    data = encoded(Image.fromarray(cmyk, 'CMYK'), 'JPEG', quality=100)
    assert b'Adobe' in data
    inks = cmyk.astype(float) / 255
    expected = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
    assert np.abs(read_image(data).astype(float) - bgr(expected)).max() <= 4
    assert read_image(data)[0, 0].tolist() == pytest.approx([255, 255, 0], abs=4)  # cyan


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('kind', ['.png', '.tif'])
def test_16_bits_keep_their_high_byte(channels, kind):
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    data = cv2.imencode(kind, deep)[1].tobytes()
    expected = np.broadcast_to(deep[..., :3] >> 8, (HEIGHT, WIDTH, 3)).astype(int)
    # cv2 rounds color TIFFs instead of truncating
    assert np.abs(read_image(data) - expected).max() <= (1 if kind == '.tif' else 0)


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_images_of_unknown_range_are_refused(dtype):
    data = encoded(Image.fromarray(pixels()[..., 0].astype(dtype) * 1000), 'TIFF')
    with pytest.raises(BadImageError, match='no decoder reads|damaged'):
        read_image(data)


def test_transparent_pixels_keep_their_color():
    image = pixels(4)
    image[:, :20, 3] = 0
    for kind, options in (('PNG', {}), ('WEBP', dict(lossless=True, exact=True))):
        assert np.array_equal(read_image(encoded(image, kind, **options)), bgr(image[..., :3]))
    palette = Image.fromarray(pixels()).quantize(16)
    for kind in ('PNG', 'GIF'):
        data = encoded(palette, kind, transparency=palette.getpixel((0, 0)))
        assert np.array_equal(read_image(data), bgr(palette.convert('RGB'))), kind


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'AVIF'])
def test_first_frame_of_animations(kind):
    shades = (40, 120, 200)
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), v, np.uint8)) for v in shades]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read_image(data).shape == (HEIGHT, WIDTH, 3)
    assert np.abs(read_image(data).astype(int) - shades[0]).max() <= 1


def test_animated_png_shows_its_default_image():
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), v, np.uint8)) for v in (10, 100, 200)]
    data = encoded(frames[0], 'PNG', save_all=True, append_images=frames[1:], default_image=True)
    assert (read_image(data) == 10).all()


@pytest.mark.parametrize('name', ORDINARY)
def test_truncated_images_are_refused(name):
    data = ORDINARY[name].removesuffix(b'\x00' * 99 + b'garbage')
    for kept in (0.05, 0.3, 0.6, 0.9, 0.99, -2, -1):
        with pytest.raises(BadImageError, match='truncated|damaged'):
            read_image(data[: kept if kept < 0 else int(len(data) * kept)])


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'AVIF'])
def test_truncated_animations_are_refused(kind):
    frames = [Image.fromarray(np.roll(pixels(), step, 0)) for step in range(3)]
    options = {} if kind in ('GIF', 'PNG') else dict(quality=95)
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    for kept in (0.05, 0.3, 0.6, 0.9):
        cut = data[: int(len(data) * kept)]
        if kind == 'GIF' and kept > 0.3:  # its first frame is complete long before its end
            assert np.array_equal(read_image(cut), read_image(data))
            continue
        with pytest.raises(BadImageError, match='truncated|damaged'):
            read_image(cut)


@pytest.mark.parametrize('name', ['jpeg', 'progressive', 'preview', 'png', 'palette'])
def test_truncation_is_found_without_decoding(name, monkeypatch):
    """At every length: older releases of OpenCV would decode them to gray."""
    data = ORDINARY[name]
    monkeypatch.setattr(cv2, 'imdecode', None)
    check_image(data)
    for length in range(1, len(data)):
        with pytest.raises(BadImageError):
            check_image(data[:length])


def test_png_with_a_flipped_bit():
    data = bytearray(
        encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), 'PNG')
    )
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImageError, match='damaged'):
        read_image(bytes(data))


def png_header(width, height):
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pieces = [header, b'IDAT' + zlib.compress(b'\x00' * 100), b'IEND']
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(p) - 4) + p + struct.pack('>I', zlib.crc32(p)) for p in pieces
    )


def test_a_jpeg_followed_by_a_video():
    """As phones store moving photos: the end marker is searched in the picture only."""
    video = np.random.default_rng(0).integers(0, 256, 10**6, np.uint8).tobytes()
    assert np.array_equal(read_image(ORDINARY['preview'] + video), read_image(ORDINARY['preview']))


@pytest.mark.parametrize(
    'data, reason',
    [
        (b'', 'empty file'),
        (b'just some text\n' * 20, 'not an image'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'not an image'),
        (b'\xff\xd8\xff\xd9', 'not an image'),
        (png_header(60000, 60000), 'too many pixels: more than Pillow decodes'),
        (png_header(10000, 10000), f'10000 x 10000, expected at most {MAX_PIXELS}'),
        (png_header(0, 10), 'damaged|not an image'),
    ],
    ids=['empty', 'text', 'eps', 'bare jpeg', 'bomb', 'large', 'no width'],
)
def test_refused_by_their_header(data, reason, monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', None)
    with pytest.raises(BadImageError, match=reason):
        read_image(data)


def test_no_exception_but_bad_image_error_for_damaged_bytes():
    rng = np.random.default_rng(0)
    for data in ORDINARY.values():
        for _ in range(12):
            broken = np.frombuffer(data, np.uint8).copy()
            broken[rng.integers(len(broken), size=4)] = rng.integers(256, size=4)
            try:
                image = read_image(broken.tobytes(), max_pixels=10**6)
            except BadImageError:
                continue
            assert image.ndim == 3 and image.dtype == np.uint8


def test_max_pixels_is_an_argument(tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(ORDINARY['png'])
    limit = HEIGHT * WIDTH
    assert LoadCheckedImage(max_pixels=limit)(dict(img_path=str(path)))['img'].size == 3 * limit
    with pytest.raises(BadImageError, match=f'{path}: too many pixels: {WIDTH} x {HEIGHT}'):
        LoadCheckedImage(max_pixels=limit - 1)(dict(img_path=str(path)))
    with pytest.raises(BadImageError, match=str(path)):  # every call checks
        LoadCheckedImage(max_pixels=limit - 1)(dict(img_path=str(path)))


def test_errors_name_the_file(tmp_path):
    (tmp_path / 'a.jpg').touch()
    for name, error in (('a.jpg', BadImageError), ('missing.jpg', FileNotFoundError)):
        with pytest.raises(error, match=name):
            LoadCheckedImage()(dict(img_path=str(tmp_path / name)))


def test_checking_costs_little():
    noise = np.random.default_rng(0).integers(0, 255, (375, 500, 3), dtype=np.uint8)
    data = encoded(cv2.GaussianBlur(noise, (0, 0), 1), 'JPEG', quality=95)

    def fastest(function):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            function(data)
            times.append(time.perf_counter() - start)
        return min(times)

    # measured: 2 % to 5 %; a second decoding would be 100 %
    assert fastest(check_image) < 0.3 * fastest(mmcv.imfrombytes)


@pytest.mark.parametrize(
    'data, reason',
    [
        (ORDINARY['png'][:-12], 'truncated image: no PNG end chunk'),
        (encoded(Image.new('F', (WIDTH, HEIGHT)), 'TIFF'), 'no decoder reads'),
    ],
    ids=['truncated', 'float'],
)
def test_checks_of_data_sets_refuse_what_training_refuses(tmp_path, data, reason):
    (tmp_path / 'a.tif').write_bytes(data)
    assert reason in inspect_image(str(tmp_path / 'a.tif')).error


def detailed(height=101, width=203, mode='RGB', **options):
    """A JPEG with detail at all scales, no symmetry, and sides that 2, 4 and 8 do not divide."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(x / 9 + y / 17) + 60 * np.sin(y / 30 - x * x / 9000)]
    waves += [255 * x / width, 255 * (y / height) ** 2]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    image = Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))
    return encoded(image.convert(mode), 'JPEG', quality=95, **options)


def oriented(tag, **options):
    exif = Image.Exif()
    exif[0x0112] = tag
    return detailed(exif=exif, **options)


SIZES = {1: (101, 203), 2: (51, 102), 4: (26, 51), 8: (13, 26)}  # rounded up by libjpeg


def area_mean(image, shape, divisor):
    """Slow reference of a smaller image: means of squares, those at the border of what is there."""
    small = np.empty((*shape, *image.shape[2:]))
    for row, column in np.ndindex(shape):
        square = image[divisor * row :, divisor * column :][:divisor, :divisor]
        small[row, column] = square.mean((0, 1))
    return small


@pytest.mark.parametrize('mode, progressive', [('RGB', True), ('L', False), ('CMYK', True)])
def test_the_smallest_size_with_enough_pixels(mode, progressive):
    data = detailed(mode=mode, progressive=progressive)
    for divisor, (height, width) in SIZES.items():
        for enough in (height * width, height * width - 1):
            assert read_image(data, enough_pixels=enough).shape == (height, width, 3)
        if divisor > 1:
            more = read_image(data, enough_pixels=height * width + 1)
            assert more.shape[:2] == SIZES[divisor // 2]
    assert read_image(data, enough_pixels=1).shape[:2] == SIZES[8]


def test_never_fewer_pixels_than_enough():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 200, 2).tolist()
        enough = int(rng.integers(1, 10000))
        data = encoded(np.zeros((height, width, 3), np.uint8), 'JPEG')
        rows, columns = read_image(data, enough_pixels=enough).shape[:2]
        assert rows * columns >= min(enough, height * width)
        if rows > -(-height // 8):  # there is a smaller size: it has too few
            assert -(-rows // 2) * -(-columns // 2) < enough


TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize('tag', range(1, 9))
def test_scaled_images_are_rotated_as_whole_ones(tag):
    data, plain = oriented(tag), detailed()
    for height, width in SIZES.values():
        upright = read_image(plain, enough_pixels=height * width)
        assert upright.shape[:2] == (height, width)
        got = read_image(data, enough_pixels=height * width)
        assert np.array_equal(got, TURNS[tag](upright))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_scaled_pixels_are_means_of_squares(mode):
    """libjpeg drops the highest frequencies of a block: close to means, not equal."""
    data = detailed(mode=mode)
    whole = read_image(data)
    for divisor in (2, 4, 8):
        shape = SIZES[divisor]
        small = read_image(data, enough_pixels=shape[0] * shape[1])
        means = area_mean(whole, shape, divisor)
        gap = np.abs(small - means)
        assert gap.mean() < 1  # measured: 0.3 to 0.7
        assert np.abs(small - np.roll(means, 1, 1)).mean() > 3 * gap.mean()


def test_other_formats_keep_their_size():
    for name, data in ORDINARY.items():
        if data[:2] != b'\xff\xd8':
            assert np.array_equal(read_image(data, enough_pixels=1), read_image(data)), name


@pytest.mark.parametrize('data', [detailed(), oriented(6)], ids=['upright', 'rotated'])
def test_small_images_are_read_as_before(data):
    for enough in (51 * 102 + 1, 101 * 203 + 1):
        assert np.array_equal(read_image(data, enough_pixels=enough), read_image(data))


@pytest.mark.parametrize('progressive', [False, True])
def test_truncated_images_are_refused_at_every_size(progressive):
    data = detailed(progressive=progressive)
    for kept in (0.05, 0.3, 0.6, 0.9, 0.99, -2, -1):
        cut = data[: kept if kept < 0 else int(len(data) * kept)]
        for enough in (None, 51 * 102, 26 * 51, 1):
            with pytest.raises(BadImageError, match='truncated|damaged'):
                read_image(cut, enough_pixels=enough)


@pytest.mark.parametrize('progressive', [False, True])
def test_damage_is_judged_alike_at_every_size(progressive):
    def judged(data, enough):
        try:
            return read_image(data, max_pixels=10**6, enough_pixels=enough).ndim
        except BadImageError:
            return 'refused'

    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        broken = np.frombuffer(detailed(64, 80, progressive=progressive), np.uint8).copy()
        broken[rng.integers(700, size=4)] = rng.integers(256, size=4)  # headers, mostly
        verdicts = {judged(broken.tobytes(), enough) for enough in (None, 32 * 40, 16 * 20, 1)}
        assert len(verdicts) == 1
        found += verdicts
    assert {3, 'refused'} == set(found)


def test_loading_at_another_size(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(oriented(6))
    step = dict(type='LoadCheckedImage', enough_pixels=51 * 102)
    got = TRANSFORMS.build(step)(dict(img_path=str(path)))
    assert got['img'].shape == (102, 51, 3)
    assert got['img_shape'] == got['ori_shape'] == (102, 51)


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match='enough_pixels=0, expected 1 or more'):
        LoadCheckedImage(enough_pixels=0)
