"""Pairs of images and masks, correct and with one mistake each."""

import numpy as np
import pytest
from PIL import Image

from mcbeit_mm.datasets.checks.ade20k import check_ade20k


def put_mask(root, name, ids, split='training', mode=None):
    mask = Image.fromarray(np.asarray(ids, np.uint8))
    mask = mask.convert(mode) if mode else mask
    mask.save(root / 'annotations' / split / name)


@pytest.fixture
def root(tmp_path):
    ids = np.array([[0, 1, 2, 3]] * 3)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for name in 'ab':
            Image.new('RGB', (4, 3)).save(tmp_path / 'images' / split / f'{name}.jpg')
            put_mask(tmp_path, f'{name}.png', ids, split)
    (tmp_path / 'classes.txt').write_text('wall\nsky\ntree\n')
    return tmp_path


def errors(report):
    return ' | '.join(report.errors)


def test_right_set(root):
    report = check_ade20k(root, workers=1)
    assert not report.errors and not report.notes
    assert report.facts == [f'{s}: 2 images, 2 with a mask' for s in ('training', 'validation')]


def test_header_check_reads_no_ids(root):
    put_mask(root, 'a.png', np.full((3, 4), 77))
    assert not check_ade20k(root, fast=True).errors
    assert 'ids outside 1..3' in errors(check_ade20k(root))


def test_missing_pairs(root):
    (root / 'images/training/a.jpg').rename(root / 'images/training/c.jpg')
    report = check_ade20k(root)
    assert report.errors == {
        'image without a mask': ['training/c.jpg'],
        'mask without an image': ['training/a.png'],
    }
    (root / 'annotations/training/b.png').rename(root / 'annotations/training/b.jpg')
    (root / 'annotations/training/.DS_Store').touch()
    report = check_ade20k(root)
    assert 'training/b.jpg' in report.errors['image without a mask']
    assert report.errors['mask without an image'] == ['training/a.png']
    assert report.notes['file among the masks that is not a .png: skipped'] == ['training/b.jpg']


def test_missing_folder(root):
    (root / 'images/validation').rename(root / 'images/val')
    assert 'no folder' in errors(check_ade20k(root))


def test_size_mismatch(root):
    put_mask(root, 'a.png', np.ones((4, 3)))
    (place,) = check_ade20k(root).errors['mask and image differ in size']
    assert place == 'training/a.png 3 x 4, image 4 x 3'


def test_color_masks_are_explained(root):
    put_mask(root, 'a.png', np.ones((3, 4)), mode='RGB')
    assert 'turn colors into ids' in errors(check_ade20k(root))


def test_palette_masks_are_ids(root):
    palette = Image.fromarray(np.full((3, 4), 2, np.uint8), mode='P')
    palette.putpalette([i for i in range(256) for _ in range(3)])
    palette.save(root / 'annotations/training/a.png')
    assert not check_ade20k(root).errors


def test_damaged_and_lossy_masks(root):
    (root / 'annotations/training/a.png').write_bytes(b'no mask')
    Image.new('L', (4, 3)).save(root / 'annotations/training/b.png', 'JPEG')
    found = errors(check_ade20k(root))
    assert 'cannot be read' in found and 'JPEG mask' in found


def test_16_bit_mask(root):
    Image.fromarray(np.full((3, 4), 300, np.uint16)).save(root / 'annotations/training/a.png')
    assert '0..255' in errors(check_ade20k(root))


def test_ids_and_ignored_pixels(root):
    put_mask(root, 'a.png', [[255, 0, 1, 2]] * 3)
    assert not check_ade20k(root).errors
    put_mask(root, 'a.png', [[4, 0, 1, 2]] * 3)
    (place,) = check_ade20k(root).errors['mask with ids outside 1..3 (0 and 255 are ignored)']
    assert place == 'training/a.png: [4]'
    (root / 'classes.txt').unlink()
    assert not check_ade20k(root, classes=5, zero_is_class=True).errors


def test_zero_label_off_by_one_is_noticed(root):
    for split in ('training', 'validation'):
        for name in 'ab':
            put_mask(root, f'{name}.png', [[0, 1, 2, 1]] * 3, split)
    assert any('--zero-is-class' in note for note in check_ade20k(root).notes)
    assert not check_ade20k(root, zero_is_class=True).notes


def test_number_of_classes(root):
    assert 'classes.txt names 3' in errors(check_ade20k(root, classes=4))


def test_images_that_mmseg_leaves_out(root):
    image = root / 'images/training/a.jpg'
    Image.open(image).save(image.with_suffix('.png'))
    image.unlink()
    report = check_ade20k(root)
    assert not report.errors and 'img_suffix' in next(iter(report.notes))
    Image.new('RGB', (4, 3)).save(image)
    assert 'two images for one mask' in errors(check_ade20k(root))


def test_absent_classes_are_notes(root):
    for name in 'ab':
        put_mask(root, f'{name}.png', [[0, 1, 3, 3]] * 3)
    assert check_ade20k(root).notes == {'training: class that never occurs': ['2 sky']}


def test_empty_mask_is_a_note(root):
    put_mask(root, 'a.png', np.zeros((3, 4)))
    assert 'mask without any class' in check_ade20k(root).notes
