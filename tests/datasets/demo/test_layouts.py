"""The demo data set: reproducible, consistent in all layouts, readable by the three libraries."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip('sklearn')
pytest.importorskip('skimage')

from mcbeit_mm.datasets.demo import layouts
from mcbeit_mm.datasets.demo.layouts import DIGITS, make_demo_data

TRAIN, VAL, SIZE = 60, 20, 64
SPLITS = [('train', TRAIN, 'training'), ('val', VAL, 'validation')]


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob('*')) if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def coco(root: Path, split: str) -> dict:
    return json.loads((root / f'detection/annotations/instances_{split}2017.json').read_text())


def decode(rle: dict) -> np.ndarray:
    values = np.arange(len(rle['counts'])) % 2 == 1
    return np.repeat(values, rle['counts']).reshape(rle['size'], order='F')


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'demo'
    make_demo_data(root, TRAIN, VAL, SIZE)
    return root


def test_same_arguments_same_bytes(demo, tmp_path):
    make_demo_data(tmp_path / 'again', TRAIN, VAL, SIZE)
    assert hashes(tmp_path / 'again') == hashes(demo)


def test_seed_and_split_change_every_image(demo, tmp_path):
    make_demo_data(tmp_path, TRAIN, VAL, SIZE, seed=1)
    other = {v for k, v in hashes(tmp_path).items() if k.endswith('.jpg')}
    these = [v for k, v in hashes(demo / 'classification').items()]
    assert len(set(these)) == TRAIN + VAL
    assert not other & set(these)


@pytest.mark.parametrize(('split', 'count', 'ade'), SPLITS)
def test_counts_and_classes(demo, split, count, ade):
    folder = demo / 'classification' / split
    assert sorted(p.name for p in folder.iterdir()) == sorted(DIGITS)
    assert all(len(list((folder / name).iterdir())) == count // 10 for name in DIGITS)
    assert len(list((demo / 'segmentation/images' / ade).iterdir())) == count
    assert len(list((demo / 'segmentation/annotations' / ade).iterdir())) == count
    assert len(list((demo / f'detection/{split}2017').iterdir())) == count
    content = coco(demo, split)
    assert len(content['images']) == count
    assert [c['name'] for c in content['categories']] == list(DIGITS)
    info = json.loads((demo / 'info.json').read_text())
    assert info['digits'][split] == len(content['annotations']) > count
    lines = (demo / 'segmentation/classes.txt').read_text().split()
    assert lines == ['background', *DIGITS]


@pytest.mark.parametrize(('split', 'count', 'ade'), SPLITS)
def test_labels_agree_across_layouts(demo, split, count, ade):
    content = coco(demo, split)
    instances = {image['id']: [] for image in content['images']}
    for annotation in content['annotations']:
        instances[annotation['image_id']].append(annotation)
    for image in content['images']:
        (jpg,) = (demo / 'classification' / split).glob(f'*/{image["file_name"]}')
        label = DIGITS.index(jpg.parent.name)
        pixels = cv2.imread(str(jpg))
        assert pixels.shape == (image['height'], image['width'], 3) == (SIZE, SIZE, 3)
        for twin in (f'segmentation/images/{ade}', f'detection/{split}2017'):
            assert (demo / twin / jpg.name).read_bytes() == jpg.read_bytes()
        path = demo / 'segmentation/annotations' / ade / f'{jpg.stem}.png'
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(mask)) == {0, 1, label + 2}
        found = instances[image['id']]
        assert 1 <= len(found) <= 3
        assert {a['category_id'] for a in found} == {label + 1}
        visible = np.stack([decode(a['segmentation']) for a in found])
        assert visible.sum(0).max() == 1, 'instances share no pixel'
        assert (visible.any(0) >= (mask == label + 2)).all(), 'each digit pixel has an instance'
        assert not (visible.any(0) & (mask == 1)).any(), 'no instance on background'
        assert (mask == 0).sum() < (mask == label + 2).sum(), 'borders are thin'


def test_boxes_and_areas_are_those_of_the_masks(demo):
    annotations = coco(demo, 'train')['annotations']
    assert [a['id'] for a in annotations] == list(range(1, len(annotations) + 1))
    sides = []
    for annotation in annotations:
        mask = decode(annotation['segmentation'])
        ys, xs = np.nonzero(mask)
        x, y, w, h = annotation['bbox']
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)
        assert annotation['area'] == mask.sum() and annotation['iscrowd'] == 0
        assert 0.08 * w * h < annotation['area'] < w * h, 'strokes, neither dots nor boxes'
        sides.append(max(w, h) / SIZE)
    assert min(sides) > 0.15 and max(sides) > 0.6


@pytest.mark.parametrize('corner', [(0, 0), (-1, -1), None])
def test_run_lengths_at_the_image_corners(corner):
    opacity = np.zeros((5, 7), np.float32)
    opacity[2, 3] = 1
    if corner is None:
        opacity[:] = 1
    else:
        opacity[corner] = 1
    annotation = layouts.coco_annotation(opacity, 4, 1, 1)
    assert sum(annotation['segmentation']['counts']) == 35
    assert np.array_equal(decode(annotation['segmentation']), opacity > 0.5)


def test_semantic_mask_ignores_soft_borders():
    opacities = np.array([[[0.0, 0.2, 0.5, 0.8]], [[0.0, 0.2, 0.5, 0.1]]])
    assert layouts.semantic_mask(opacities, 7).tolist() == [[1, 0, 0, 9]]


def test_finished_set_is_kept_and_others_are_left_alone(tmp_path):
    make_demo_data(tmp_path, 10, 10, 64)
    (tmp_path / 'classification/mark').touch()
    made = hashes(tmp_path)
    assert make_demo_data(tmp_path, 10, 10, 64)['arguments']['train'] == 10
    with pytest.raises(FileExistsError, match='a set with other arguments'):
        make_demo_data(tmp_path, 12, 10, 64)
    assert hashes(tmp_path) == made


def test_interrupted_set_leaves_nothing(tmp_path, monkeypatch):
    draw_split = layouts.draw_split

    def interrupted(*args):
        for index, scene in enumerate(draw_split(*args)):
            if index == 5:
                raise KeyboardInterrupt
            yield scene

    monkeypatch.setattr(layouts, 'draw_split', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / 'a', 10, 10, 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['classification/photo.jpg', 'info.json'])
def test_foreign_folders_are_left_alone(tmp_path, name):
    (tmp_path / 'classification').mkdir()
    (tmp_path / name).write_text('{}')
    with pytest.raises(FileExistsError, match='choose another folder, or delete the old set'):
        make_demo_data(tmp_path, 10, 10, 64)
    assert (tmp_path / name).read_text() == '{}'


@pytest.mark.parametrize('wrong', [dict(train=9), dict(val=0), dict(size=32), dict(seed=-1)])
def test_arguments_out_of_range(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f'{name} must be from .* to .*, got {value}'):
        make_demo_data(tmp_path / 'out', **wrong)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('package', ['sklearn', 'skimage'])
def test_missing_package_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match='pip install scikit-learn scikit-image'):
        make_demo_data(tmp_path / 'out', 10, 10, 64)
    assert not (tmp_path / 'out').exists()


def test_tool(tmp_path, monkeypatch, capsys):
    sizes = ['--train', '10', '--val', '10', '--size', '64', '--seed', '3']
    monkeypatch.setattr(sys, 'argv', ['make_demo_data.py', '--out', str(tmp_path / 'out'), *sizes])
    runpy.run_path(str(ROOT / 'tools/make_demo_data.py'), run_name='__main__')
    assert '10 + 10 images' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--train', '11'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools/make_demo_data.py'), run_name='__main__')
    assert stop.value.code == 2 and 'other arguments' in capsys.readouterr().err
    info = json.loads((tmp_path / 'out/info.json').read_text())
    assert info['arguments'] | dict(train=10, val=10, size=64, seed=3) == info['arguments']


def test_mmpretrain_reads_it(demo):
    from mmpretrain.datasets import CustomDataset

    data = CustomDataset(data_root=str(demo / 'classification'), data_prefix='val', pipeline=[])
    assert len(data) == VAL and data.metainfo['classes'] == DIGITS
    assert np.bincount(data.get_gt_labels()).tolist() == [VAL // 10] * 10


def test_mmseg_reads_it(demo):
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    data = BaseSegDataset(
        data_root=str(demo / 'segmentation'),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=dict(classes=('background', *DIGITS)),
        reduce_zero_label=True,
        pipeline=[dict(type='mmseg.LoadAnnotations')],
    )
    assert len(data) == VAL
    for item in data:
        label = (int(Path(item['img_path']).stem) - 1) % 10
        assert set(np.unique(item['gt_seg_map'])) == {255, 0, label + 1}


def test_mmdet_reads_it(demo):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules
    from pycocotools.coco import COCO

    register_all_modules(init_default_scope=False)
    ann_file = demo / 'detection/annotations/instances_val2017.json'
    api = COCO(str(ann_file))
    for annotation in api.anns.values():
        assert np.array_equal(api.annToMask(annotation), decode(annotation['segmentation']))
    data = CocoDataset(
        data_root=str(demo / 'detection'),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        metainfo=dict(classes=DIGITS),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    assert len(data) == VAL
    assert sum(len(item['gt_bboxes']) for item in data) == len(api.anns)
    item = data[3]
    expected = [api.annToMask(a) for a in api.imgToAnns[item['img_id']]]
    assert np.array_equal(item['gt_masks'].masks, np.stack(expected))
    assert item['gt_bboxes_labels'].tolist() == [3] * len(expected)
