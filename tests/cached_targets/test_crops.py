"""Fixed crops recur in every epoch with their records; other data is refused."""

import pickle

import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image
from tiny_cache import UNREADABLE_IMAGE, cached_config, make_cache, tiny_config, write_photos

from mcbeit_mm.cached_targets.cache import open_arrays
from mcbeit_mm.cached_targets.crops import CachedTargetsCrop
from mcbeit_mm.datasets.seeded_data import SeededDataset
from mcbeit_mm.errors import SetupError


@pytest.fixture
def root(tmp_path):
    root = write_photos(tmp_path)
    make_cache(tiny_config(root), root / 'cache', num_crops=2)
    return root


def dataset_of(root):
    cfg = cached_config(tiny_config(root), root / 'cache')
    return DATASETS.build(cfg.train_dataloader.dataset)


def test_crops_return_masks_do_not(root):
    dataset = SeededDataset(dataset_of(root), 0)
    epochs = [dataset[0, (epoch, 0)] for epoch in range(12)]
    views = {sample['inputs'][0].numpy().tobytes() for sample in epochs}
    assert len(views) == 2
    assert len({sample['inputs'][1].numpy().tobytes() for sample in epochs}) == 2
    assert len({sample['data_samples'].mask.numpy().tobytes() for sample in epochs}) > 6
    again = dataset[0, (3, 0)]
    assert torch.equal(again['inputs'][1], epochs[3]['inputs'][1])


def test_unreadable_images_are_replaced_in_training(root):
    with pytest.raises(ValueError, match='truncated'):  # the image itself
        dataset_of(root)[UNREADABLE_IMAGE]
    Image.new('RGB', (56, 46)).save(root / f'train/{UNREADABLE_IMAGE}.jpg')  # repaired since
    with pytest.raises(OSError, match='unreadable when targets were cached'):
        dataset_of(root)[UNREADABLE_IMAGE]
    dataset = SeededDataset(dataset_of(root), 0)
    dataset.bad_samples.max_share = 0.5
    assert dataset[UNREADABLE_IMAGE, (0, 0)]['data_samples'].img_path.endswith('.jpg')
    assert dataset.bad_samples.count == 1


def other_size(train):
    Image.new('RGB', (60, 41)).save(train / '0.jpg')


def other_name(train):
    (train / '0.jpg').rename(train / '0_.jpg')


def removed(train):
    (train / '0.jpg').unlink()  # all following images get another index


def added(train):
    Image.new('RGB', (60, 40)).save(train / '9.jpg')


@pytest.mark.parametrize(
    'change, index', [(other_size, 0), (other_name, 0), (removed, 0), (added, 6)]
)
def test_changed_data_is_refused(root, change, index):
    change(root / 'train')
    with pytest.raises(SetupError, match='the cache was built from other data'):
        dataset_of(root)[index]


def test_a_copied_transform_holds_no_records(root):
    transform = CachedTargetsCrop(str(root / 'cache'))
    records, _ = open_arrays(str(root / 'cache'))
    assert len(pickle.dumps(transform)) < records.nbytes / 2
    assert transform.crop_of(str(root / 'cache'))['second_size'] == 8


def test_a_missing_cache_is_found_at_once(root):
    (root / 'cache/targets.npy').unlink()
    open_arrays.cache_clear()
    with pytest.raises(FileNotFoundError):
        CachedTargetsCrop(str(root / 'cache'))
