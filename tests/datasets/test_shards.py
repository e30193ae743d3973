"""Packs are written, indexed and read; they give the images of the folder, and report damage."""

import io
import pickle
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from mmengine import fileio
from mmengine.dataset import pseudo_collate
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch.utils.data import DataLoader

from mcbeit_mm.datasets import shards
from mcbeit_mm.datasets.photo_folder import PhotoFolder
from mcbeit_mm.datasets.shards import INDEX, Pack, index_tars, pack_images

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
    shards.opened.clear()


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
    with pytest.raises(FileNotFoundError, match=file.name):
        Pack(pack)
    (pack / INDEX).unlink()
    for function in (fileio.get, fileio.exists, fileio.isdir):
        with pytest.raises(FileNotFoundError, match='did not finish'):
            function(f'shard://{pack}/{NAMES[0]}')


def test_other_formats_are_refused(pack):
    for version in (dict(format=2), dict(names=np.array([b'a']))):
        np.savez(pack / INDEX, **version)
        with pytest.raises(ValueError, match='format (2|None), expected 3; pack again'):
            Pack(pack)


def write_tar(file, members, mode='w'):
    with tarfile.open(file, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_folders_are_packed_in_order_and_once(folder, tmp_path):
    (folder / 'notes.txt').write_text('skipped')
    out = tmp_path / 'pack'
    assert pack_images(folder, out, shard_bytes=4000) == len(NAMES)
    members = []
    for shard in sorted(out.glob('*.tar')):
        with tarfile.open(shard) as tar:
            members += tar.getnames()
    assert len(list(out.glob('*.tar'))) > 1
    assert members == [str(path) for path in sorted(map(Path, NAMES))]
    for unfinished in (False, True):
        if unfinished:
            (out / INDEX).unlink()
        with pytest.raises(FileExistsError, match='is not empty'):
            pack_images(folder, out)
    with pytest.raises(FileNotFoundError, match='no folder'):
        pack_images(tmp_path / 'none', tmp_path / 'other')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no image to pack'):
        pack_images(tmp_path / 'empty', tmp_path / 'other')


def test_existing_tars_are_indexed(tmp_path):
    write_tar(tmp_path / 'n01.tar', [('x.jpg', b'1' * 700), ('y.jpg', b'22'), ('empty.jpg', b'')])
    write_tar(tmp_path / 'n02.tar', [('x.jpg', b'333')])
    with tarfile.open(tmp_path / 'n02.tar', 'a') as tar:
        link = tarfile.TarInfo('link.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    assert index_tars(tmp_path) == 4
    assert Pack(tmp_path).below('') == ['n01/empty.jpg', 'n01/x.jpg', 'n01/y.jpg', 'n02/x.jpg']
    assert fileio.get(f'shard://{tmp_path}/n02/x.jpg') == b'333'
    assert Pack(tmp_path).read('n01/y.jpg') == b'22' and Pack(tmp_path).read('n01/empty.jpg') == b''


@pytest.mark.parametrize('name', ['../x.jpg', '/x.jpg', 'a//x.jpg'])
def test_names_stay_inside(tmp_path, name):
    write_tar(tmp_path / 'a.tar', [(name, b'1')])
    with pytest.raises(ValueError, match='not a valid name'):
        index_tars(tmp_path)


def test_bad_tars_are_refused(tmp_path):
    file = tmp_path / 'a.tar'
    with pytest.raises(ValueError, match='no image'):
        index_tars(tmp_path)
    write_tar(file, [('x.jpg', b'1')] * 2)
    with pytest.raises(ValueError, match='duplicate name in .*: a/x.jpg'):
        index_tars(tmp_path)
    for mode in ('w:gz', 'w:xz'):
        write_tar(file, [('x.jpg', b'1' * 5000)], mode)
        with pytest.raises(ValueError, match='a.tar is damaged or compressed'):
            index_tars(tmp_path)
    write_tar(file, [('x.jpg', b'1' * 5000), ('y.jpg', b'2')])
    data = file.read_bytes()
    second = data.index(b'y.jpg')
    for broken in (
        data[:3000],
        data[: second + 100],
        data[: second + 512],
        data[:second] + b'z' + data[second + 1 :],  # the checksum of the header
    ):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match='a.tar is damaged'):
            index_tars(tmp_path)


def test_sparse_members_are_refused(tmp_path):
    """Their data is not in one piece."""
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1' * 512)])
    info = tarfile.TarInfo('x.jpg')
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b'%011o\0%011o\0' % (512, 512)  # 512 bytes at 512 of a file of 1,024
    header[483:495] = b'%011o\0' % 1024
    header[148:156] = b'%06o\0 ' % (256 + sum(header[:148]) + sum(header[156:]))
    (tmp_path / 'a.tar').write_bytes(header + b'1' * 512 + bytes(1024))
    with pytest.raises(ValueError, match='x.jpg is cut short or sparse'):
        index_tars(tmp_path)


def test_tool(folder, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['pack_images.py', *map(str, words)])
        runpy.run_path(str(ROOT / 'tools/pack_images.py'), run_name='__main__')
        return capsys.readouterr().out

    out = tmp_path / 'out'
    assert f'{len(NAMES)} images: data_root=shard://{out}' in run(folder, out, '--shard-size', 1)
    assert Pack(out).read(NAMES[1]) == (folder / NAMES[1]).read_bytes()
    for words in ((folder, out), ('--index', folder, out), (folder,)):
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2
    assert 'is not empty' in capsys.readouterr().err
    write_tar(out / 'more.tar', [('7.jpg', b'1')])
    assert f'{len(NAMES) + 1} images: data_root=shard://{out}' in run('--index', out)
    assert Pack(out).read('more/7.jpg') == b'1'
    assert Pack(out).read(f'000000/{NAMES[0]}') == (folder / NAMES[0]).read_bytes()
