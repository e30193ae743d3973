"""Any layout by its name, and trees of unlabeled images."""

import numpy as np
import pytest
from PIL import Image

from mcbeit_mm.datasets.checks.dataset import check_dataset, check_folder


def save(path, kept=1.0):
    noise = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])


@pytest.mark.parametrize('workers', [1, 2])
def test_folder(tmp_path, workers):
    (tmp_path / 'deep').mkdir()
    for i in range(5):
        save(tmp_path / f'deep/{i}.jpg')
    report = check_folder(tmp_path, workers=workers)
    assert not report.errors and report.facts == ['5 images']
    for name in ('bad.jpg', 'worse.jpg'):
        save(tmp_path / name, kept=0.9)
    report = check_folder(tmp_path, workers=workers, progress=True)
    folder = tmp_path.name
    assert report.errors == {
        'truncated image': [
            f'{folder}/bad.jpg (no JPEG end marker)',
            f'{folder}/worse.jpg (no JPEG end marker)',
        ]
    }
    assert not check_folder(tmp_path, workers=workers, fast=True).errors


def test_folder_without_images(tmp_path):
    assert 'no image' in next(iter(check_folder(tmp_path).errors))


def test_any_layout_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'):
        check_dataset('coco', tmp_path / 'none')
    for layout in ('imagenet', 'ade20k', 'coco', 'folder'):
        report = check_dataset(layout, tmp_path, out=tmp_path / 'out.txt')
        assert report.errors
        assert (tmp_path / 'out.txt').read_text() == report.text(examples=None) + '\n'
