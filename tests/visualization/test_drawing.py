"""Pictures show the labels they are given."""

import numpy as np
import pytest
from PIL import Image

from mcbeit_mm.visualization import drawing


def test_classes_are_blended_and_ignored_pixels_kept():
    image = np.full((2, 3, 3), 100, np.uint8)
    palette = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)
    labels = np.array([[0, 1, 255], [255, 255, 255]])
    painted = drawing.paint_classes(image, labels, palette, opacity=0.5)
    assert painted[0].tolist() == [[50, 50, 50], [150, 100, 50], [100, 100, 100]]
    assert (painted[1] == 100).all() and (image == 100).all()


def test_objects_are_drawn_where_they_are():
    image = np.zeros((100, 100, 3), np.uint8)
    palette = drawing.colors(3)
    masks = np.zeros((1, 100, 100), bool)
    masks[0, 40:60, 40:60] = True
    boxes = np.array([[20.0, 30, 80, 90]])
    picture = drawing.paint_objects(image, boxes, [2], masks, [''], palette)
    assert picture.shape == (300, 300, 3)  # enlarged three times
    np.testing.assert_array_equal(picture[200, 61], palette[2])  # left edge of the box
    np.testing.assert_allclose(picture[150, 150], 0.55 * palette[2], atol=1.5)
    assert not picture[:80].any() and not picture[250, 150].any()
    nothing = drawing.paint_objects(image, np.zeros((0, 4)), [], masks[:0], [], palette)
    assert not nothing.any()


def test_colors_differ():
    palette = drawing.colors(12).astype(int)
    distance = np.abs(palette[:, None] - palette).sum(-1) + 999 * np.eye(12, dtype=int)
    assert distance.min() > 100


def test_images_are_read_as_rgb(tmp_path):
    Image.new('RGB', (3, 2), (10, 20, 30)).save(tmp_path / 'x.png')
    image = drawing.read_image(str(tmp_path / 'x.png'))
    assert image.shape == (2, 3, 3) and image[0, 0].tolist() == [10, 20, 30]
    with pytest.raises(FileNotFoundError, match='cannot read'):
        drawing.read_image(str(tmp_path / 'y.png'))
