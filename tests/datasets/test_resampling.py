"""Resizing against a slow reference in NumPy and against Pillow, at odd and even sizes."""

import numpy as np
import pytest
import torch
from mmpretrain.datasets import PackInputs
from PIL import Image

from mcbeit_mm.datasets import resampling
from mcbeit_mm.datasets.resampling import INTERPOLATIONS, resize

SIZES = [  # (h, w) -> (H, W)
    ((61, 47), (32, 32)),
    ((20, 31), (45, 64)),  # enlarging
    ((90, 21), (30, 40)),  # smaller one way, larger the other
    ((21, 90), (40, 30)),
    ((33, 32), (33, 32)),
    ((1, 1), (5, 7)),
    ((1, 50), (9, 3)),
    ((50, 1), (3, 9)),
    ((2, 3), (1, 1)),
    ((40, 30), (16, 1)),
    ((40, 30), (1, 16)),
]


def cubic(x, a=-0.5):
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {  # support, weight of a distance
    'bilinear': (1, lambda x: np.maximum(1 - x, 0)),
    'bicubic': (2, cubic),
    'lanczos': (3, lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}


def resized_rows(image, width, interpolation):
    """One direction by the definition: the kernel is widened where the image shrinks."""
    support, kernel = KERNELS[interpolation]
    scale = image.shape[1] / width
    stretch = max(scale, 1)
    result = np.empty((image.shape[0], width, *image.shape[2:]))
    for column in range(width):
        center = (column + 0.5) * scale
        first = max(int(center - support * stretch + 0.5), 0)
        last = min(int(center + support * stretch + 0.5), image.shape[1])
        weights = kernel(np.abs(np.arange(first, last) + 0.5 - center) / stretch)
        result[:, column] = np.tensordot(weights / weights.sum(), image[:, first:last], (0, 1))
    return np.floor(np.clip(result, 0, 255) + 0.5)


def slowly_resized(image, size, interpolation):
    rows = image if size[1] == image.shape[1] else resized_rows(image, size[1], interpolation)
    if size[0] == image.shape[0]:
        return rows
    return resized_rows(rows.swapaxes(0, 1), size[0], interpolation).swapaxes(0, 1)


def photo(height, width, contrast=1):
    """Noise; at the highest contrast black and white, the worst for rounding and clipping."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return ((image > 127) * 255 if contrast else image // 2 + 60).astype(np.uint8)


def gap(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize('interpolation', sorted(INTERPOLATIONS))
@pytest.mark.parametrize('source, size', SIZES)
def test_pixels_follow_the_definition(interpolation, source, size):
    for contrast in (0, 1):
        image = photo(*source, contrast)
        expected = slowly_resized(image, size, interpolation)
        for backend in ('torch', 'pillow'):
            difference = gap(resize(image, size, interpolation, backend), expected)
            allowed = max(2, 0.05 * difference.size)
            assert difference.max() <= 2 and (difference > 0).sum() <= allowed, (contrast, backend)


@pytest.mark.parametrize('interpolation', sorted(INTERPOLATIONS))
@pytest.mark.parametrize('gray', [False, True])
def test_backends_agree(interpolation, gray):
    for source, size in SIZES:
        image = photo(*source)[..., 0] if gray else photo(*source)
        by_torch, by_pillow = (resize(image, size, interpolation, b) for b in ('torch', 'pillow'))
        difference = gap(by_torch, by_pillow)
        allowed = max(2, 0.05 * difference.size)
        assert difference.max() <= 2 and (difference > 0).sum() <= allowed, (source, size)


def test_pillow_backend_is_pillow_where_rows_come_first_in_all_releases():
    image = photo(40, 90)  # wide: Pillow 13 would take the columns of a tall one first
    whole = Image.fromarray(image)
    for name, filter_ in INTERPOLATIONS.items():
        assert np.array_equal(
            resize(image, (32, 24), name, 'pillow'), whole.resize((24, 32), filter_)
        )


@pytest.mark.parametrize('backend', ['torch', 'pillow'])
@pytest.mark.parametrize('interpolation', sorted(INTERPOLATIONS))
def test_flipped_views_give_flipped_pixels(backend, interpolation):
    for source, size in SIZES:
        for axes in ((1,), (0,), (2,), (0, 1, 2)):
            view = np.flip(photo(*source), axes)
            expected = resize(np.ascontiguousarray(view), size, interpolation, backend)
            assert np.array_equal(resize(view, size, interpolation, backend), expected), axes


def test_crops_need_not_be_contiguous():
    whole = photo(60, 80)
    crop = whole[7:50, 11:70]
    assert not crop.flags.c_contiguous
    for name in INTERPOLATIONS:
        assert np.array_equal(resize(crop, (20, 24), name), resize(crop.copy(), (20, 24), name))


@pytest.mark.parametrize('backend', ['torch', 'pillow'])
def test_gray_images_keep_two_axes(backend):
    image = photo(40, 50)
    gray = resize(image[..., 0], (16, 24), 'bicubic', backend)
    assert gray.shape == (16, 24)
    assert np.array_equal(gray, resize(image, (16, 24), 'bicubic', backend)[..., 0])


def test_result_owns_its_pixels():
    """Of any size: a view of the image would keep all of it in memory."""
    image = photo(24, 16)
    for size in [(24, 16), (12, 16), (24, 8), (12, 8)]:
        for backend in ('torch', 'pillow'):
            assert not np.shares_memory(image, resize(image, size, 'bicubic', backend))


def test_packing_copies_nothing():
    for image in (photo(40, 50), np.flip(photo(40, 50), 1)):
        view = resize(image, (16, 24), 'bicubic')
        packed = PackInputs()(dict(img=[view]))['inputs'][0]
        assert packed.shape == (3, 16, 24) and packed.is_contiguous()
        assert np.shares_memory(packed.numpy(), view)


def test_same_pixels_on_any_number_of_threads():
    image, threads = photo(300, 400), torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append([resize(image, (224, 224), name) for name in INTERPOLATIONS])
    finally:
        torch.set_num_threads(threads)
    assert all(map(np.array_equal, *found))


def test_what_torch_lacks_is_left_to_pillow(monkeypatch):
    image, real = photo(40, 50), torch.nn.functional.interpolate

    def older(*args, mode, **kwargs):
        if mode == 'lanczos':
            raise NotImplementedError(mode)
        return real(*args, mode=mode, **kwargs)

    monkeypatch.setattr('torch.nn.functional.interpolate', older)
    resampling.torch_resizes.cache_clear()
    try:
        for name in ('lanczos', 'bicubic'):
            expected = resize(image, (16, 24), name, 'pillow' if name == 'lanczos' else 'torch')
            assert np.array_equal(resize(image, (16, 24), name), expected)
        assert not resampling.torch_resizes('lanczos') and resampling.torch_resizes('bicubic')
    finally:
        resampling.torch_resizes.cache_clear()


@pytest.mark.parametrize('name', ['bilinear', 'bicubic'])
def test_torch_has_the_older_interpolations(name):
    assert resampling.torch_resizes(name)
