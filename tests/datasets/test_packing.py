"""Packs are written from folders and indexed from archives; damaged archives are refused."""

import io
import runpy
import stat
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from mmengine import fileio
from PIL import Image

from mcbeit_mm.datasets import shards
from mcbeit_mm.datasets.packing import index_archives, pack_images
from mcbeit_mm.datasets.shards import STORED, Pack, open_pack

NAMES = ['a/1.jpg', 'a/b c/2.jpg', 'ä/5.jpg', 'z' * 120 + '/6.jpg']
METHODS = dict(stored=zipfile.ZIP_STORED, deflated=zipfile.ZIP_DEFLATED)
each_method = pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)


@pytest.fixture(autouse=True)
def _fresh():
    open_pack.cache_clear()
    shards._find_pack.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """Images of one color, as BMP: deflate shrinks them."""
    for number, name in enumerate(NAMES):
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), 40 * number, np.uint8)).save(path, 'BMP')
    return tmp_path / 'photos'


def write_tar(file, members, mode='w'):
    with tarfile.open(file, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_folders_are_packed_in_order_and_in_several_shards(folder, tmp_path):
    (folder / 'notes.txt').write_text('skipped')
    assert pack_images(folder, tmp_path / 'pack', shard_bytes=3000) == len(NAMES)
    shards_ = sorted((tmp_path / 'pack').glob('*.tar'))
    assert len(shards_) == 2
    members = []
    for shard in shards_:
        with tarfile.open(shard) as tar:
            members += tar.getnames()
    assert members == sorted(NAMES)


def test_unfinished_packs_are_written_anew_and_others_kept(folder, tmp_path):
    out = tmp_path / 'pack'
    pack_images(folder, out, shard_bytes=1)
    assert len(list(out.glob('*.tar'))) == len(NAMES)
    with pytest.raises(FileExistsError, match='holds other files'):
        pack_images(folder, out)
    (out / shards.INDEX).unlink()
    (out / 'n01.tar').touch()  # not from an unfinished pack
    with pytest.raises(FileExistsError, match='holds other files'):
        pack_images(folder, out)
    (out / 'n01.tar').unlink()
    pack_images(folder, out)
    assert [file.name for file in out.glob('*.tar')] == ['000000.tar']
    with pytest.raises(FileNotFoundError, match='no folder'):
        pack_images(tmp_path / 'none', tmp_path / 'other')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no image to pack'):
        pack_images(tmp_path / 'empty', tmp_path / 'other')


def test_existing_tars_are_indexed(tmp_path):
    write_tar(tmp_path / 'n01.tar', [('x.jpg', b'1' * 700), ('y.jpg', b'22')])
    write_tar(tmp_path / 'n02.tar', [('x.jpg', b'333')])
    assert index_archives(tmp_path) == 3
    assert fileio.get(f'shard://{tmp_path}/n02/x.jpg') == b'333'
    assert Pack(tmp_path).read('n01/y.jpg') == b'22'


def write_zip(file, members, method=zipfile.ZIP_STORED, **options):
    with zipfile.ZipFile(file, 'w', method, **options) as archive:
        for name, data in members:
            archive.writestr(name, data)


def with_field(file, place, layout, value):
    """Overwrite a field of the first entry in a zip's list of members."""
    data = bytearray(file.read_bytes())
    struct.pack_into(layout, data, data.index(b'PK\x01\x02') + place, value)
    file.write_bytes(data)


@each_method
def test_zips_give_the_bytes_of_the_files(folder, tmp_path, method):
    members = [(name, (folder / name).read_bytes()) for name in NAMES]
    (tmp_path / 'zips').mkdir()
    write_zip(tmp_path / 'zips' / 'n01.zip', [('a/', b''), ('empty.jpg', b''), *members], method)
    assert index_archives(tmp_path / 'zips') == len(NAMES) + 1  # no folders
    pack = Pack(tmp_path / 'zips')
    assert (pack.places[:, 4] == STORED).all() == (method == zipfile.ZIP_STORED)
    assert pack.read('n01/empty.jpg') == b''
    for name, data in members:
        assert pack.read(f'n01/{name}') == data
        assert fileio.get(f'shard://{tmp_path}/zips/n01/{name}') == data
    listed = fileio.list_dir_or_file(f'shard://{tmp_path}/zips/n01', recursive=True)
    assert set(listed) - {'empty.jpg'} == set(fileio.list_dir_or_file(folder, recursive=True))


class Stream(io.BytesIO):
    """As a pipe: sizes and CRC-32 follow a member's data, its header holds zeros."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise OSError

    tell = seek


@each_method
@pytest.mark.parametrize('kind', ['local extra field', 'zip64', 'streamed', 'bytes before'])
def test_every_kind_of_zip(tmp_path, monkeypatch, method, kind):
    members = [(f'ä/{number}.jpg', bytes([number]) * 300) for number in range(5)]
    file = tmp_path / 'a.zip'
    if kind == 'zip64':  # as if these were the limits of 4 GiB and 65,535 members
        monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 100)
        monkeypatch.setattr(zipfile, 'ZIP_FILECOUNT_LIMIT', 2)
    long_headers = kind in ('local extra field', 'zip64')
    target = Stream() if kind == 'streamed' else file
    with zipfile.ZipFile(target, 'w', method) as archive:
        for name, data in members:
            with archive.open(name, 'w', force_zip64=long_headers) as member:
                member.write(data)
    if kind == 'streamed':
        file.write_bytes(target.getvalue())
    elif kind == 'bytes before':
        file.write_bytes(b'#!/bin/sh\nexit\n' + file.read_bytes())
    assert (b'PK\x06\x06' in file.read_bytes()) == (kind == 'zip64')
    assert index_archives(tmp_path) == 5
    for name, data in members:
        assert Pack(tmp_path).read(f'a/{name}') == data


def test_tars_and_zips_in_one_folder(tmp_path):
    write_tar(tmp_path / 'b.tar', [('x.jpg', b'1')])
    write_zip(tmp_path / 'a.zip', [('x.jpg', b'2'), ('c/y.jpg', b'3' * 99)], zipfile.ZIP_DEFLATED)
    write_zip(tmp_path / 'b.zip', [('y.jpg', b'4')])
    (tmp_path / 'readme.txt').write_text('skipped')
    assert index_archives(tmp_path) == 4
    pack = Pack(tmp_path)
    assert pack.below('') == ['a/c/y.jpg', 'a/x.jpg', 'b/x.jpg', 'b/y.jpg']
    assert [pack.read(name) for name in pack.below('')] == [b'3' * 99, b'2', b'1', b'4']
    write_zip(tmp_path / 'b.zip', [('x.jpg', b'4')])
    with pytest.raises(ValueError, match='duplicate name in .*: b/x.jpg'):
        index_archives(tmp_path)


@each_method
def test_damage_in_zips_is_found(tmp_path, method):
    write_zip(tmp_path / 'a.zip', [('x.jpg', bytes(range(256)))], method)
    index_archives(tmp_path)
    start, length = Pack(tmp_path).places[0, 1:3].tolist()
    data = bytearray((tmp_path / 'a.zip').read_bytes())
    data[start + length // 2] ^= 1
    (tmp_path / 'a.zip').write_bytes(data)
    with pytest.raises(OSError, match='CRC-32 mismatch in .*a.zip'):
        Pack(tmp_path).read('a/x.jpg')
    with pytest.raises(ValueError, match='a.zip is damaged.*x.jpg does not match'):
        index_archives(tmp_path)


def test_links_in_archives_are_skipped(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        link = zipfile.ZipInfo('link.jpg')
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, '/etc/passwd')
        archive.writestr('x.jpg', b'1')
    with tarfile.open(tmp_path / 'b.tar', 'w') as tar:
        info = tarfile.TarInfo('link.jpg')
        info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(info)
    assert index_archives(tmp_path) == 1
    assert Pack(tmp_path).below('') == ['a/x.jpg']


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(tmp_path, method):
    write_zip(tmp_path / 'a.zip', [('b/x.jpg', b'1' * 99)], method)
    with pytest.raises(ValueError, match=f'a.zip: b/x.jpg is .*compressed by method {method}'):
        index_archives(tmp_path)


def test_encrypted_members_are_refused(tmp_path):
    write_zip(tmp_path / 'a.zip', [('b/x.jpg', b'1' * 99)])
    with_field(tmp_path / 'a.zip', 8, '<H', 1)
    with pytest.raises(ValueError, match='a.zip: b/x.jpg is encrypted.*unpack'):
        index_archives(tmp_path)


@pytest.mark.parametrize(
    'place, layout, value, reason',
    [
        (6, '<H', 99, 'zip file version 9.9'),
        (16, '<I', 1, 'x.jpg does not match'),
        (20, '<I', 10**6, 'x.jpg does not match'),
        (20, '<I', 1, 'x.jpg does not match'),
        (24, '<I', 1, 'x.jpg does not match'),
        (24, '<I', 10**9, 'x.jpg does not match'),
        (42, '<I', 10, 'x.jpg does not match'),
        (42, '<I', 2**32 - 2, ''),
    ],
)
@each_method
def test_wrong_entries_are_refused(tmp_path, method, place, layout, value, reason):
    write_zip(tmp_path / 'a.zip', [('x.jpg', bytes(5000))], method)
    with_field(tmp_path / 'a.zip', place, layout, value)
    with pytest.raises(ValueError, match=f'a.zip is damaged.*{reason}'):
        index_archives(tmp_path)


def test_names_in_another_encoding_than_stated_are_refused(tmp_path):
    write_zip(tmp_path / 'a.zip', [('x.jpg', b'1')])
    data = (tmp_path / 'a.zip').read_bytes()
    (tmp_path / 'a.zip').write_bytes(data.replace(b'x.jpg', b'\xff.jpg'))
    with_field(tmp_path / 'a.zip', 8, '<H', 0x800)  # UTF-8
    with pytest.raises(ValueError, match="a.zip is damaged.*can't decode"):
        index_archives(tmp_path)


@each_method
def test_truncated_zips_are_refused(tmp_path, method):
    write_zip(tmp_path / 'a.zip', [('x.jpg', b'1' * 99)], method)
    data = (tmp_path / 'a.zip').read_bytes()
    for length in range(len(data)):
        (tmp_path / 'a.zip').write_bytes(data[:length])
        with pytest.raises(ValueError, match='a.zip is damaged'):
            index_archives(tmp_path)


@pytest.mark.parametrize('name', ['../x.jpg', '/x.jpg', 'a//x.jpg'])
@pytest.mark.parametrize('write', [write_tar, write_zip])
def test_names_stay_inside(tmp_path, write, name):
    write(tmp_path / f'a.{write.__name__[-3:]}', [(name, b'1')])
    with pytest.raises(ValueError, match='not a valid name'):
        index_archives(tmp_path)


def test_bad_tars_are_refused(tmp_path):
    with pytest.raises(ValueError, match='no image'):
        index_archives(tmp_path)
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1')] * 2)
    with pytest.raises(ValueError, match='duplicate name'):
        index_archives(tmp_path)
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1' * 5000)], 'w:gz')
    with pytest.raises(ValueError, match='compressed'):
        index_archives(tmp_path)
    write_tar(tmp_path / 'a.tar', [('x.jpg', b'1' * 5000)])
    (tmp_path / 'a.tar').write_bytes((tmp_path / 'a.tar').read_bytes()[:3000])
    with pytest.raises(ValueError, match='damaged'):
        index_archives(tmp_path)


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
    assert 'holds other files' in capsys.readouterr().err
    write_zip(out / 'more.zip', [('7.jpg', b'1')])
    assert f'{len(NAMES) + 1} images: data_root=shard://{out}' in run('--index', out)
    assert Pack(out).read('more/7.jpg') == b'1'
    assert Pack(out).read(f'000000/{NAMES[0]}') == (folder / NAMES[0]).read_bytes()
