"""Packs hold the same images as the folder, and say so when they do not."""

import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT
from mmengine import fileio
from mmengine.dataset import pseudo_collate
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch.utils.data import DataLoader

from mcbeit_mm import shards
from mcbeit_mm.datasets import PhotoFolder
from mcbeit_mm.shards import INDEX, Pack, index_tars, open_pack, pack_folder

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
    shards._pack_of.cache_clear()


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
    out.mkdir()
    images = [(name, folder / name) for name in NAMES]
    assert pack_folder(images, out, shard_bytes=1500) == len(NAMES)
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
        dataset = kind(data_root=str(root), pipeline=[dict(type='LoadCheckedImage')], **settings)
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
    with pytest.raises(OSError, match='other bytes than packed'):
        Pack(pack).read(NAMES[0])
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match='bytes, .* says'):
        Pack(pack)
    file.unlink()
    with pytest.raises(FileNotFoundError, match='is missing'):
        Pack(pack)
    (pack / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match='did not finish'):
        fileio.get(f'shard://{pack}/{NAMES[0]}')


def test_other_formats_are_refused(pack):
    np.savez(pack / INDEX, format=2)
    with pytest.raises(ValueError, match='another format'):
        Pack(pack)


def write_tar(file, members, mode='w'):
    with tarfile.open(file, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_indexes_tars_that_are_there(tmp_path):
    write_tar(tmp_path / 'n01.tar', [('x.jpg', b'1' * 700), ('y.jpg', b'22')])
    write_tar(tmp_path / 'n02.tar', [('x.jpg', b'333')])
    assert index_tars(tmp_path) == 3
    assert fileio.get(f'shard://{tmp_path}/n02/x.jpg') == b'333'
    assert Pack(tmp_path).read('n01/y.jpg') == b'22'


@pytest.mark.parametrize('name', ['../x.jpg', '/x.jpg', 'a//x.jpg'])
def test_names_stay_inside(tmp_path, name):
    write_tar(tmp_path / 'a.tar', [(name, b'1')])
    with pytest.raises(ValueError, match='no name'):
        index_tars(tmp_path)


def test_bad_tars_are_refused(tmp_path):
    with pytest.raises(ValueError, match='no image'):
        index_tars(tmp_path)
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1')] * 2)
    with pytest.raises(ValueError, match='twice'):
        index_tars(tmp_path)
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1' * 5000)], 'w:gz')
    with pytest.raises(ValueError, match='compressed'):
        index_tars(tmp_path)
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1' * 5000)])
    (tmp_path / 'a.tar').write_bytes((tmp_path / 'a.tar').read_bytes()[:3000])
    with pytest.raises(ValueError, match='damaged'):
        index_tars(tmp_path)


def test_script(folder, tmp_path):
    out = tmp_path / 'out'
    command = [sys.executable, 'tools/pack_images.py', folder, out, '--shard-size', '1']
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    run = dict(cwd=ROOT, env=environment, capture_output=True, text=True)
    result = subprocess.run(command, **run)
    assert result.returncode == 0, result.stderr
    assert f'{len(NAMES)} images: data_root=shard://{out}' in result.stdout
    assert Pack(out).read(NAMES[1]) == (folder / NAMES[1]).read_bytes()
    again = subprocess.run(command, **run)
    assert again.returncode != 0 and 'holds other files' in again.stderr
