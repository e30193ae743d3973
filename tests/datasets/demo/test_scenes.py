"""Drawing of the demo images."""

import cv2
import numpy as np
import pytest

pytest.importorskip('sklearn')
pytest.importorskip('skimage')

from mcbeit_mm.datasets.demo import scenes

SIZE = 64


def test_image_does_not_depend_on_the_count():
    few = list(scenes.draw_split('val', 3, SIZE, 0))
    many = list(scenes.draw_split('val', 9, SIZE, 0))
    for (image, opacities, label), (image2, opacities2, label2) in zip(few, many, strict=False):
        assert label == label2
        assert np.array_equal(image, image2) and np.array_equal(opacities, opacities2)


def test_digits_stand_out():
    gaps = []
    for image, opacities, _ in scenes.draw_split('val', 50, SIZE, 0):
        gray = image @ scenes.LUMINANCE
        main = opacities[0] > 0.9
        ring = cv2.dilate((opacities[0] > 0.1).astype(np.uint8), np.ones((9, 9))) > 0
        ring &= opacities.sum(0) < 0.1
        gaps.append(abs(gray[main].mean() - gray[ring].mean()))
    assert min(gaps) > 40 and np.median(gaps) > 80  # of 255


def test_train_and_val_share_no_digit_and_no_photograph():
    train, val = (scenes.load_digit_samples(split, 0) for split in ('train', 'val'))
    assert sum(map(len, train)) + sum(map(len, val)) == 1797
    assert not {x.tobytes() for x in np.concatenate(train)} & {
        x.tobytes() for x in np.concatenate(val)
    }
    names = [name for _, files in scenes.PHOTOS.values() for name in files]
    for name, left, right in zip(
        names, scenes.load_photos('train'), scenes.load_photos('val'), strict=True
    ):
        base = left if left.base is None else left.base
        assert left.shape[1] + right.shape[1] == base.shape[1], name
        assert min(*left.shape[:2], *right.shape[:2]) >= 96, name
