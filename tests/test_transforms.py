"""Views and masks against Pillow, and the authors' statistics."""

import numpy as np
import pytest
import torch
from mmcv.transforms import RandomFlip
from PIL import Image

from mcbeit_mm.transforms import BlockMask, PatchMask, RandomPatchMask, TwoViewRandomResizedCrop


def photo(height=90, width=120):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_views(image, box, sizes, flip=False):
    """Reference: flip and crop as images, rows before columns as Pillow before 13."""
    image = Image.fromarray(image)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left, height, width = box
    crop = image.crop((left, top, left + width, top + height))
    filters = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return [
        np.array(crop.resize((size[1], height), name).resize(size[::-1], name))
        for size, name in zip(sizes, filters, strict=True)
    ]


@pytest.mark.parametrize('backend, levels', [('pillow', 0), ('torch', 2)])
@pytest.mark.parametrize('flip', [0.0, 1.0])
@pytest.mark.parametrize('box', [(7, 11, 60, 45), (0, 0, 90, 120), (20, 30, 1, 1), (9, 0, 16, 24)])
def test_views_are_resizes_of_one_crop(monkeypatch, backend, levels, flip, box):
    image, sizes = photo(), [(32, 32), (16, 24)]
    transform = TwoViewRandomResizedCrop(*sizes, backend=backend, flip_prob=flip)
    monkeypatch.setattr('torchvision.transforms.RandomResizedCrop.get_params', lambda *_: box)
    results = transform(dict(img=image))
    expected = pillow_views(image, box, sizes, flip=bool(flip))
    for view, slow, size in zip(results['img'], expected, sizes, strict=True):
        assert view.shape == (*size, 3) and view.dtype == np.uint8
        assert np.abs(view.astype(int) - slow).max() <= levels
    assert results['img_shape'] == sizes[0]


@pytest.mark.parametrize('prob', [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize('backend', ['torch', 'pillow'])
def test_flip_prob_is_random_flip_before_it(prob, backend):
    """The same draws, and the same pixels whether the image or its views are mirrored."""
    settings = dict(size=32, second_size=(16, 24), backend=backend)
    before, inside = RandomFlip(prob), TwoViewRandomResizedCrop(**settings, flip_prob=prob)
    after, flips = TwoViewRandomResizedCrop(**settings), 0
    for seed in range(30):
        seeded(seed)
        flipped = before(dict(img=photo()))
        flips += flipped['flip']
        expected, state = after(flipped)['img'], np.random.random()
        seeded(seed)
        views = inside(dict(img=photo()))['img']
        assert all(map(np.array_equal, views, expected))
        assert prob == 0 or np.random.random() == state
        seeded(seed)
        copied = dict(img=np.ascontiguousarray(before(dict(img=photo()))['img']))
        assert all(map(np.array_equal, after(copied)['img'], expected))
    assert abs(flips - 30 * prob) < 9  # 3.3 standard deviations


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)


def test_no_flip_draws_nothing():
    seeded(0)
    TwoViewRandomResizedCrop(size=32, second_size=16)(dict(img=photo()))
    state = np.random.random()
    seeded(0)
    assert state == np.random.random()


def test_crops_cover_scale_ratio_and_borders():
    # Pixel values are coordinates, so a view shows where it was cropped.
    rows, cols = np.mgrid[:64, :64].astype(np.uint8) * 4
    image = np.stack([rows, cols, rows], axis=-1)
    transform = TwoViewRandomResizedCrop(size=64, second_size=8, interpolation='bilinear')
    seen = [transform(dict(img=image))['img'][0] for _ in range(300)]
    top = np.array([view[0, :, 0].mean() for view in seen]) / 4
    bottom = np.array([view[-1, :, 0].mean() for view in seen]) / 4
    assert top.min() < 1 and bottom.max() > 62  # crops reach both borders
    heights = bottom - top
    assert heights.max() > 55 and heights.min() < 25


def test_same_seed_same_views():
    transform, image = TwoViewRandomResizedCrop(size=32, second_size=16), photo()
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(transform(dict(img=image))['img'][0])
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_tiny_and_gray_images_do_not_fail():
    transform = TwoViewRandomResizedCrop(size=32, second_size=16)
    for shape in [(1, 1), (2, 300), (300, 2)]:
        student, view = transform(dict(img=photo(*shape)))['img']
        assert student.shape == (32, 32, 3) and view.shape == (16, 16, 3)
    for shape in [(1, 1), (40, 50)]:
        student, view = transform(dict(img=photo(*shape)[..., 0]))['img']
        assert student.shape == (32, 32) and view.shape == (16, 16)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(interpolation='area'),
        dict(scale=(0.5, 0.1)),
        dict(ratio=(0, 1)),
        dict(backend='cv2'),
        dict(flip_prob=1.5),
    ],
)
def test_views_refuse_wrong_settings(kwargs):
    with pytest.raises(ValueError, match='expected one of|ranges|must be in'):
        TwoViewRandomResizedCrop(**kwargs)


@pytest.mark.parametrize('kind', [np.float32, np.uint16])
def test_views_require_8_bits(kind):
    with pytest.raises(ValueError, match=f'8-bit image, got {kind.__name__}'):
        TwoViewRandomResizedCrop(32, 16)(dict(img=photo().astype(kind)))


def statistics(masks):
    return dict(
        count_mean=masks.sum((1, 2)).mean(),
        horizontal_neighbours_both_masked=(masks[:, :, 1:] & masks[:, :, :-1]).mean(),
        vertical_neighbours_both_masked=(masks[:, 1:] & masks[:, :-1]).mean(),
    )


def draw(mask: PatchMask, times: int) -> np.ndarray:
    return np.stack([mask.generate() for _ in range(times)])


def test_block_mask_has_the_authors_statistics(golden_json):
    g = golden_json('masks')['block']
    config = g['config']
    mask = BlockMask(
        tuple(config['input_size']),
        config['num_masking_patches'],
        config['min_num_patches'],
        config['min_aspect'],
    )
    masks = draw(mask, 3000)
    counts = masks.sum((1, 2))
    assert counts.max() <= g['count_max'] == config['num_masking_patches']
    assert counts.min() >= g['count_min'] - 4
    # Standard error of the mean count: 0.99 / sqrt(3000) = 0.018; of neighbors: below 0.001.
    got = statistics(masks)
    assert got['count_mean'] == pytest.approx(g['count_mean'], abs=0.1)
    assert counts.std() == pytest.approx(g['count_std'], rel=0.1)
    for key in ('horizontal_neighbours_both_masked', 'vertical_neighbours_both_masked'):
        assert got[key] == pytest.approx(g[key], abs=0.005)
    # Cell frequencies: standard error 0.009, 196 cells.
    assert np.abs(masks.mean(0) - np.array(g['cell_frequency'])).max() < 0.045


def test_block_mask_reaches_the_last_row_and_column():
    masks = draw(BlockMask(14, 75), 200)
    assert masks[:, -1].any() and masks[:, :, -1].any()


def test_random_mask_has_the_authors_statistics(golden_json):
    g = golden_json('masks')['random']
    mask = RandomPatchMask(tuple(g['config']['input_size']), g['config']['mask_ratio'])
    masks = draw(mask, 3000)
    assert set(masks.sum((1, 2))) == {g['num_mask']}
    got = statistics(masks)
    for key in ('horizontal_neighbours_both_masked', 'vertical_neighbours_both_masked'):
        assert got[key] == pytest.approx(g[key], abs=0.005)
    assert np.abs(masks.mean(0) - 0.75).max() < 0.04


@pytest.mark.parametrize(
    'ratio, count', [(0.4, 78), (0.5, 98), (0.6, 117), (0.75, 147), (1.0, 196)]
)
def test_random_mask_counts(ratio, count):
    assert RandomPatchMask(14, ratio).generate().sum() == count


@pytest.mark.parametrize('mask', [RandomPatchMask((3, 7), 0.5), BlockMask((3, 7), 9, min_block=2)])
def test_other_grids(mask):
    out = mask(dict())['mask']
    assert out.shape == (3, 7) and out.dtype == bool and 0 < out.sum() <= 10


def test_block_mask_stops_where_no_block_fits():
    assert BlockMask((1, 1), 1).generate().sum() == 0  # blocks are smaller than the grid


@pytest.mark.parametrize(
    'build',
    [
        lambda: RandomPatchMask(14, 0),
        lambda: BlockMask(4, 17),
        lambda: BlockMask(4, 4, min_aspect=2),
    ],
)
def test_masks_refuse_wrong_settings(build):
    with pytest.raises(ValueError, match='must be in'):
        build()
