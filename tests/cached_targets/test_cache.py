"""A cache gives back what was written, or says what is wrong with it."""

import json
import os
import pickle

import numpy as np
import pytest
from tiny_cache import NUM_IMAGES, make_cache, tiny_config, write_photos

from mcbeit_mm.cached_targets.cache import MANIFEST, CachePlan, TargetCache, image_check
from mcbeit_mm.errors import SetupError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = write_photos(tmp_path_factory.mktemp('photos'))
    make_cache(tiny_config(root), root / 'cache')
    return root / 'cache'


@pytest.fixture
def folder(made, tmp_path):
    copy = tmp_path / 'cache'
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def check_of(number):
    return image_check(f'/elsewhere/{number}.jpg', (40 + 3 * number, 60 - 2 * number))


def test_every_crop_has_a_record_of_its_own(folder):
    cache = TargetCache(folder)
    plan = cache.plan
    assert (plan.num_images, plan.num_crops, plan.stride) == (NUM_IMAGES, 3, 2)
    good = [i for i in range(NUM_IMAGES) if i != 2]
    records = [cache.read(i, crop, check_of(i)) for i in good for crop in range(3)]
    assert all(r.shape == (plan.record.num_bytes,) and r.dtype == np.uint8 for r in records)
    assert len({r.tobytes() for r in records}) == len(records)
    sizes = sum(file.stat().st_size for file in folder.glob('*.bin'))
    assert sizes == plan.num_bytes == NUM_IMAGES * 3 * (8 + 16 * 16 * 4)


def test_manifest_reads_as_it_was_written(folder):
    plan = TargetCache(folder).plan
    content = json.loads((folder / MANIFEST).read_text())
    assert plan.as_json(fidelity=content['fidelity']) == (folder / MANIFEST).read_text()
    assert content['tokenizer']['precision'] == 'fp32' and len(content['tokenizer']['sha256']) == 64
    assert CachePlan.from_json(folder / MANIFEST) == plan


def test_an_unreadable_image_has_no_targets(folder):
    with pytest.raises(OSError, match='could not be read when'):
        TargetCache(folder).read(2, 0, check_of(2))


@pytest.mark.parametrize(
    'index, check',
    [
        (0, image_check('1.jpg', (40, 60))),  # another image
        (0, image_check('0.jpg', (41, 60))),  # another size
        (NUM_IMAGES, 1),  # more images
    ],
)
def test_other_data_are_refused(folder, index, check):
    with pytest.raises(SetupError, match='made from other data'):
        TargetCache(folder).read(index, 0, check)


def test_every_changed_byte_is_found(folder):
    file = folder / 'targets-00000.bin'
    intact = file.read_bytes()
    size = TargetCache(folder).plan.bytes_per_crop
    for place in (0, 3, 4, 8, size // 2, size - 1):
        damaged = bytearray(intact)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(OSError, match='damaged'):
            TargetCache(folder).read(0, 0, check_of(0))
        TargetCache(folder).read(0, 1, check_of(0))


def test_incomplete_folders(folder, tmp_path):
    file = folder / 'targets-00000.bin'
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match='bytes, expected'):
        TargetCache(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match='is missing'):
        TargetCache(folder)
    (folder / MANIFEST).rename(folder / 'unfinished.json')
    with pytest.raises(FileNotFoundError, match='is unfinished; run tools/cache_targets.py'):
        TargetCache(folder)
    with pytest.raises(FileNotFoundError, match='no cached targets'):
        TargetCache(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    'text', ['', '[]', '{}', '{"format": 2}', '{"format": 1, "record": {"grid": [1]}}']
)
def test_other_manifests(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match='no manifest of cached targets'):
        TargetCache(folder)


def test_processes_read_for_themselves(folder):
    """Forked readers share open files, but no position in them."""
    cache = TargetCache(folder)
    expected = [cache.read(i, 1, check_of(i)).tobytes() for i in (0, 1, 3)]
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        found = [cache.read(i, 1, check_of(i)).tobytes() for i in (0, 1, 3)]
        os.write(writer, pickle.dumps(found == expected))
        os._exit(0)
    assert [cache.read(i, 1, check_of(i)).tobytes() for i in (0, 1, 3)] == expected
    os.waitpid(child, 0)
    assert pickle.loads(os.read(reader, 100)) is True
