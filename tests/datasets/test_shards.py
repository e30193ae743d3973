"""Packs give the images of the folder, and report damage."""

import pickle
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from mmengine import fileio
from mmengine.dataset import pseudo_collate
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch.utils.data import DataLoader

from mcbeit_mm.datasets import shards
from mcbeit_mm.datasets.packing import index_archives, pack_images
from mcbeit_mm.datasets.photo_folder import PhotoFolder
from mcbeit_mm.datasets.shards import INDEX, Pack, open_pack

NAMES = [
    'a/1.jpg',
    'a/b c/2.jpg',
    'a-b/3.jpg',
    'a0/4.jpg',
    'ä/5.jpg',
    'z' * 120 + '/6.jpg',
    'a/1.jpg2.jpg',
]


@pytest.fixture(autouse=True)
def _fresh():
    open_pack.cache_clear()
    shards._find_pack.cache_clear()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 9, 3), np.uint8)).save(path, 'JPEG')
    return tmp_path / 'photos'


@pytest.fixture
def pack(folder, tmp_path):
    out = tmp_path / 'pack'
    assert pack_images(folder, out, shard_bytes=4000) == len(NAMES)
    assert len(list(out.glob('*.tar'))) > 1
    return out


def test_bytes_are_those_of_the_files(folder, pack):
    opened = Pack(pack)
    for name in NAMES:
        data = (folder / name).read_bytes()
        assert opened.read(name) == data
        assert fileio.get(f'shard://{pack}/{name}') == data
    for tar in pack.glob('*.tar'):  # and they are ordinary tar files
        with tarfile.open(tar) as members:
            for member in members:
                assert members.extractfile(member).read() == (folder / member.name).read_bytes()


@pytest.mark.parametrize('missing', ['a/2.jpg', 'a', 'a/1', 'zz.jpg'])
def test_missing_images(pack, missing):
    assert not fileio.isfile(f'shard://{pack}/{missing}')
    with pytest.raises(FileNotFoundError, match='no such image'):
        Pack(pack).read(missing)


@pytest.mark.parametrize('recursive', [False, True])
@pytest.mark.parametrize('below', ['', 'a', 'a/b c'])
def test_lists_as_the_folder(folder, pack, recursive, below):
    for kind in (
        dict(list_dir=False),
        dict(list_file=False),
        {},
        dict(list_dir=False, suffix='2.jpg'),
    ):
        kind = dict(kind, recursive=recursive)
        expected = fileio.list_dir_or_file(str(folder / below), **kind)
        found = fileio.list_dir_or_file(f'shard://{pack}/{below}'.rstrip('/'), **kind)
        assert sorted(found) == sorted(expected)


def test_data_sets_are_those_of_the_folder(folder, pack):
    def samples(kind, root, **settings):
        # Not serialized: MMEngine would collect garbage each time, which takes half a second.
        pipeline = [dict(type='LoadCheckedImage')]
        dataset = kind(data_root=str(root), pipeline=pipeline, serialize_data=False, **settings)
        return [
            (s['img_path'].removeprefix(str(root)), s['img'], s.get('gt_label')) for s in dataset
        ]

    for kind, settings in (
        (CustomDataset, {}),
        (CustomDataset, dict(with_label=False)),
        (CustomDataset, dict(with_label=False, data_prefix='a')),
        (PhotoFolder, dict(split='train', val_share=0.5)),
        (PhotoFolder, dict(split='val', val_share=0.5)),
    ):
        pairs = zip(
            samples(kind, folder, **settings),
            samples(kind, f'shard://{pack}', **settings),
            strict=True,
        )
        for (name, image, label), (packed_name, packed_image, packed_label) in pairs:
            assert (name, label) == (packed_name, packed_label)
            assert np.array_equal(image, packed_image)


def test_workers_read_alike(pack):
    dataset = CustomDataset(
        data_root=f'shard://{pack}', with_label=False, pipeline=[dict(type='LoadCheckedImage')]
    )
    dataset[0]  # opens a file before the workers are forked
    dataset = pickle.loads(pickle.dumps(dataset))
    batches = [
        list(DataLoader(dataset, 2, num_workers=workers, collate_fn=pseudo_collate))
        for workers in (0, 2)
    ]
    for alone, parallel in zip(*batches, strict=True):
        for image, other in zip(alone['img'], parallel['img'], strict=True):
            assert np.array_equal(image, other)


def test_damage_is_reported(pack):
    opened = Pack(pack)
    row = opened.row(NAMES[0])
    shard, offset = opened.places[row][:2].tolist()
    file = opened.shards[shard]
    data = bytearray(file.read_bytes())
    data[offset + 5] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match='CRC-32 mismatch'):
        Pack(pack).read(NAMES[0])
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match='bytes, .* lists'):
        Pack(pack)
    file.unlink()
    with pytest.raises(FileNotFoundError, match='is missing'):
        Pack(pack)
    (pack / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match='did not finish'):
        fileio.get(f'shard://{pack}/{NAMES[0]}')


def test_other_formats_are_refused(pack):
    np.savez(pack / INDEX, format=3)
    with pytest.raises(ValueError, match='format 3, expected 1 or 2'):
        Pack(pack)
    np.savez(pack / INDEX, names=np.array([b'a']))
    with pytest.raises(ValueError, match='format None'):
        Pack(pack)


def test_indexes_without_inflated_sizes_are_read(folder, pack):
    with np.load(pack / INDEX) as index:
        columns = dict(index)
    columns.update(format=1, places=columns['places'][:, :4])
    np.savez(pack / INDEX, **columns)
    for name in NAMES:
        assert Pack(pack).read(name) == (folder / name).read_bytes()


@pytest.fixture
def zipped(tmp_path):
    """A pack of one zip file with an image of zeros, deflated."""
    (tmp_path / 'zipped').mkdir()
    with zipfile.ZipFile(tmp_path / 'zipped' / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x.jpg', bytes(5000))
    assert index_archives(tmp_path / 'zipped') == 1
    return tmp_path / 'zipped'


def with_place(pack, **values):
    """The pack, after other values in the only row of its index."""
    with np.load(pack / INDEX) as index:
        columns = dict(index)
    for name, value in values.items():
        columns['places'][0, ['shard', 'offset', 'length', 'crc', 'size'].index(name)] = value
    np.savez(pack / INDEX, **columns)
    return Pack(pack)


@pytest.mark.parametrize('size', [0, 1, 4999, 5001, 10**15])
def test_wrong_sizes_are_refused(zipped, size):
    assert Pack(zipped).read('a/x.jpg') == bytes(5000)
    crc = zlib.crc32(bytes(min(size, 5000)))  # of the bytes that a careless reader would return
    with pytest.raises(OSError, match='CRC-32 mismatch in .*a.zip'):
        with_place(zipped, size=size, crc=crc).read('a/x.jpg')


def test_inflating_stops_after_the_size(zipped):
    """100 MiB of zeros that state 10 bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(100 * 2**20)) + packer.flush()
    (zipped / 'a.zip').write_bytes(bomb)
    with np.load(zipped / INDEX) as index:
        columns = dict(index, sizes=np.array([len(bomb)]))
    np.savez(zipped / INDEX, **columns)
    pack = with_place(zipped, offset=0, length=len(bomb), size=10)
    tracemalloc.start()
    with pytest.raises(OSError, match='CRC-32 mismatch'):
        pack.read('a/x.jpg')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(bomb) < 10 * 2**20


def test_damaged_deflate_data_is_reported(zipped):
    place = Pack(zipped).places[0].tolist()
    data = (zipped / 'a.zip').read_bytes()
    for at in range(place[1], place[1] + place[2]):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        (zipped / 'a.zip').write_bytes(broken)
        with pytest.raises(OSError, match='CRC-32 mismatch'):
            Pack(zipped).read('a/x.jpg')
