"""Annotation files with one mistake each."""

import json

import numpy as np
import pytest
from PIL import Image

from mcbeit_mm.datasets.checks.coco import check_coco, decode_counts

SPLITS = (('annotations/train.json', 'photos'),)


def content():
    polygon = [[1, 1, 9, 1, 9, 9]]
    return dict(
        images=[dict(id=1, file_name='a.jpg', width=20, height=10)],
        annotations=[
            dict(id=i, image_id=1, category_id=3, bbox=[1, 1, 8, 8], area=32, segmentation=polygon)
            for i in (1, 2)
        ],
        categories=[dict(id=3, name='cat')],
    )


def check(root, data, **reading):
    (root / 'photos').mkdir(exist_ok=True)
    (root / 'annotations').mkdir(exist_ok=True)
    Image.new('RGB', (20, 10)).save(root / 'photos/a.jpg')
    text = data if isinstance(data, str) else json.dumps(data)
    (root / 'annotations/train.json').write_text(text)
    return check_coco(root, SPLITS, **reading)


def errors(report):
    return ' | '.join(report.errors)


def test_right_file(tmp_path):
    report = check(tmp_path, content())
    assert not report.errors
    assert report.facts == ['train: 1 images, 2 annotations, 1 categories']
    assert ['train: 1 categories' in note for note in report.notes] == [True]


def test_unused_categories_are_notes(tmp_path):
    data = content()
    data['categories'].append(dict(id=4, name='dog'))
    report = check(tmp_path, data)
    assert not report.errors
    assert report.notes['train: category without annotations'] == ['dog']


@pytest.mark.parametrize(
    'kind, key, value, error',
    [
        ('images', 'file_name', 'none.jpg', 'not in its folder'),
        ('images', 'width', 21, 'size in the file differs'),
        ('annotations', 'id', 2, 'id given to several annotations'),
        ('annotations', 'image_id', 5, 'unknown image id'),
        ('annotations', 'category_id', 1, 'unknown category id'),
        ('annotations', 'bbox', [1, 1, 25, 8], 'box beyond the image'),
        ('annotations', 'bbox', [-3, 1, 8, 8], 'box beyond the image'),
        ('annotations', 'bbox', [1, 1, -8, 8], 'box that is not'),
        ('annotations', 'bbox', [1, 1, 8], 'box that is not'),
        ('annotations', 'bbox', [1, 1, 8, float('nan')], 'box that is not'),
        ('annotations', 'segmentation', [[1, 1, 9, 1]], 'polygon without'),
        ('annotations', 'segmentation', [], 'without a mask'),
        ('annotations', 'segmentation', dict(size=[20, 10], counts=[200]), 'whose size'),
        ('annotations', 'segmentation', dict(size=[10, 20], counts=[100]), 'cannot be decoded'),
        ('annotations', 'segmentation', dict(size=[10, 20], counts='5'), 'cannot be decoded'),
        ('annotations', 'segmentation', dict(size=[10, 20], counts='oooo'), 'cannot be decoded'),
        ('annotations', 'segmentation', dict(size=[10, 20]), 'cannot be decoded'),
    ],
)
def test_one_mistake(tmp_path, kind, key, value, error):
    data = content()
    data[kind][0][key] = value
    assert error in errors(check(tmp_path, data))


def test_run_lengths_as_pycocotools():
    coco_mask = pytest.importorskip('pycocotools.mask')
    for share in (0.01, 0.5, 0.99):
        mask = np.random.default_rng(0).random((70, 300)) < share
        packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        edges = np.flatnonzero(np.diff(mask.ravel(order='F'), prepend=False, append=False))
        expected = np.diff(np.unique(np.append(edges, mask.size)), prepend=0)
        assert decode_counts(packed['counts'].decode()) == expected.tolist()


def test_rle_masks(tmp_path):
    coco_mask = pytest.importorskip('pycocotools.mask')
    data = content()
    plain = dict(size=[10, 20], counts=[40, 60, 100])
    data['annotations'][0]['segmentation'] = plain
    packed = coco_mask.frPyObjects(plain, 10, 20)
    data['annotations'][1]['segmentation'] = dict(
        size=packed['size'], counts=packed['counts'].decode()
    )
    assert not check(tmp_path, data).errors


def test_annotation_id_0_is_a_note(tmp_path):
    data = content()
    data['annotations'][1]['id'] = 0
    report = check(tmp_path, data)
    assert not report.errors
    assert any('annotation id 0' in note for note in report.notes)


def test_keys_and_form(tmp_path):
    data = content()
    del data['annotations'][0]['area']
    assert '1 annotations without all of' in errors(check(tmp_path, data))
    assert 'expected lists images' in errors(check(tmp_path, dict(images=[])))
    assert 'is not JSON' in errors(check(tmp_path, '{"images": ['))


def test_missing_parts(tmp_path):
    report = check_coco(tmp_path)
    assert len(report.errors) == 2 and 'train2017' in errors(report)
    (tmp_path / 'photos').mkdir()
    assert 'no annotation file' in errors(check_coco(tmp_path, SPLITS))


def test_damaged_and_unlisted_images(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/b.jpg').write_bytes(b'')
    report = check(tmp_path, content())
    assert 'empty file' in errors(report)
    assert any('in the folder but not in the file' in note for note in report.notes)


def test_splits_with_different_categories(tmp_path):
    check(tmp_path, content())
    other = content()
    other['categories'][0]['name'] = 'dog'
    (tmp_path / 'annotations/val.json').write_text(json.dumps(other))
    report = check_coco(tmp_path, (*SPLITS, ('annotations/val.json', 'photos')))
    assert 'different categories' in errors(report)
