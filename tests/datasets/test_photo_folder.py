"""Unlabeled images of any folder tree, all of them or split by path."""

import shutil
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS

from mcbeit_mm.datasets.photo_folder import PhotoFolder


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """120 images at several depths, among other files."""
    root = tmp_path_factory.mktemp('photos')
    for folder in ('.', 'trip', 'trip/day 2', 'größe'):
        (root / folder).mkdir(exist_ok=True)
        for i in range(30):
            cv2.imencode('.png', np.full((4, 4, 3), i, np.uint8))[1].tofile(
                root / folder / f'{i}.PNG'
            )
        (root / folder / 'notes.txt').touch()
        (root / folder / '.hidden.png').touch()
    return root


def paths(root, **kwargs) -> list[str]:
    # Not serialized: MMEngine would collect garbage each time, which takes half a second.
    config = dict(type='PhotoFolder', data_root=str(root), serialize_data=False, **kwargs)
    data = DATASETS.build(config)
    return [
        str(Path(info['img_path']).relative_to(root))
        for info in map(data.get_data_info, range(len(data)))
    ]


def test_every_image_is_taken(photos):
    expected = sorted(str(file.relative_to(photos)) for file in photos.rglob('[0-9]*.PNG'))
    assert len(expected) == 120 and sorted(paths(photos)) == expected
    trip = paths(photos, data_prefix='trip')
    assert sorted(trip) == [name for name in expected if name.startswith('trip/')]
    assert (
        paths(photos, data_prefix=dict(img_path='trip'))
        == trip
        == paths(photos, data_prefix=str(photos / 'trip'))
    )
    item = PhotoFolder(str(photos), pipeline=[dict(type='mmpretrain.LoadImageFromFile')])[0]
    assert item['img'].shape == (4, 4, 3) and 'gt_label' not in item


def test_splits_by_path(photos, tmp_path):
    train, val = (paths(photos, split=split, val_share=0.2) for split in ('train', 'val'))
    assert not set(train) & set(val) and sorted(train + val) == sorted(paths(photos))
    expected = [name for name in paths(photos) if crc32(name.encode()) / 2**32 < 0.2]
    assert val == expected and 12 <= len(val) <= 36
    shutil.copytree(photos, tmp_path / 'moved')
    (tmp_path / 'moved/trip/0.PNG').unlink()
    again = paths(tmp_path / 'moved', split='val', val_share=0.2)
    assert set(again) == set(val) - {'trip/0.PNG'}
    part = paths(photos, split='val', val_share=0.2, data_prefix='trip')
    assert set(part) == {name for name in val if name.startswith('trip/')}


def test_relative_root(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    relative = PhotoFolder(photos.name, split='val', val_share=0.2, serialize_data=False)
    assert len(relative) == len(paths(photos, split='val', val_share=0.2))
    prefix_only = PhotoFolder(
        data_prefix=str(photos), split='val', val_share=0.2, serialize_data=False
    )
    assert len(prefix_only) == len(relative)


def test_errors(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match='no data folder .*set MCBEIT_DATA=FOLDER'):
        PhotoFolder(str(tmp_path / 'none'))
    with pytest.raises(FileNotFoundError, match='no image .*.jpg.* below'):
        PhotoFolder(str(tmp_path))
    with pytest.raises(ValueError, match="split 'val' of the 120 images .* is empty"):
        PhotoFolder(str(photos), split='val', val_share=1e-9)
    with pytest.raises(ValueError, match="split 'train' of the 120 images .* is empty"):
        PhotoFolder(str(photos), split='train', val_share=1 - 1e-9)
    for wrong in (dict(split='test'), dict(val_share=0), dict(val_share=1.0)):
        with pytest.raises(ValueError, match='0 < val_share < 1, got'):
            PhotoFolder(str(photos), **wrong)
