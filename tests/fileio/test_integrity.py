"""No flipped bit and no missing byte changes the loaded content unnoticed."""

import random
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from small_runs import same
from torch import nn

from mcbeit_mm.fileio.integrity import DOS_FOLDER, damage
from mcbeit_mm.weights.mmengine_loading import load_from_local

CENTRAL = b'PK\x01\x02'  # signature of an entry in a zip's directory
EXTERNAL_ATTR = 38  # offset of the attributes in it


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """The bytes of a checkpoint of model, optimizer and meta."""
    model = nn.Linear(5, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 5)).sum().backward()
    optimizer.step()
    checkpoint = dict(
        meta=dict(epoch=1, iter=20, cfg='model = 3', run=dict(world_size=2)),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
    )
    path = tmp_path_factory.mktemp('good') / 'epoch_1.pth'
    torch.save(checkpoint, path)
    return path.read_bytes()


@pytest.fixture
def file(tmp_path, good):
    """A checkpoint to damage."""
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(good)
    return path


def harmless(file, original) -> bool:
    """Whether damage is reported or does not change the loaded content."""
    return bool(damage(file)) or same(load_from_local(str(file)), original)


def test_good_file(file):
    assert damage(file) is None


@pytest.mark.parametrize('seed', range(4))
def test_no_random_damage_goes_unnoticed(file, good, seed):
    original = load_from_local(str(file))
    draw = random.Random(seed)
    reported = 0
    for _ in range(100):  # one bit or up to 8 bytes
        damaged = bytearray(good)
        place = draw.randrange(len(good))
        if draw.random() < 0.5:
            damaged[place] ^= 1 << draw.randrange(8)
        else:
            damaged[place : place + 8] = draw.randbytes(min(8, len(good) - place))
        file.write_bytes(damaged)
        assert harmless(file, original), f'byte {place} of {len(good)}'
        reported += bool(damage(file))
    assert reported > 40  # the rest hits padding and unused header fields


@pytest.mark.slow
def test_no_bit_of_the_whole_file_goes_unnoticed(file, good):
    original = load_from_local(str(file))
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert harmless(file, original), f'bit {bit}'


def test_every_truncation_is_found(file, good):
    lengths = random.Random(0).sample(range(len(good)), 100)
    for length in [0, 1, 4, len(good) - 1, *lengths]:
        file.write_bytes(good[:length])
        assert damage(file), length


def test_a_record_marked_as_a_folder_is_found(file, good):
    """One flipped bit, not covered by a CRC, makes torch return uninitialized memory."""
    damaged = bytearray(good)
    at = -1
    for _ in range(5):  # the first tensors' records come after four others
        at = damaged.index(CENTRAL, at + 1)
    damaged[at + EXTERNAL_ATTR] ^= DOS_FOLDER
    file.write_bytes(damaged)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
    assert damage(file) == 'record epoch_1/data/0 is marked as a folder'


def test_an_index_that_hides_records_is_found(file, good):
    """Python's zipfile ignores the number of records in the index; torch relies on it."""
    at = good.index(b'PK\x06\x06') + 24  # two counts in the zip64 end record
    (count,) = struct.unpack_from('<Q', good, at)
    damaged = bytearray(good)
    original = load_from_local(str(file))
    for number in range(count + 2):
        struct.pack_into('<QQ', damaged, at, number, number)
        file.write_bytes(damaged)
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
        assert harmless(file, original)
        assert (damage(file) is None) == (number in (count - 1, count))  # the last: an id


def test_the_message_names_the_record(file, good):
    weight = load_from_local(str(file))['state_dict']['weight'].numpy().tobytes()
    damaged = bytearray(good)
    damaged[good.index(weight) + 3] ^= 64
    file.write_bytes(damaged)
    assert not same(load_from_local(str(file)), good)  # torch does not notice
    assert damage(file) == 'record epoch_1/data/0 does not match its CRC-32'


def test_zeros_as_after_a_power_cut(file, good):
    file.write_bytes(bytes(len(good)))
    assert 'not a checkpoint' in damage(file)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('a/readme', 'text')
    assert damage(tmp_path / 'a.pth')


def test_safetensors(tmp_path):
    path = tmp_path / 'model.safetensors'
    save_file(dict(a=torch.ones(9), b=torch.zeros(2)), path, metadata=dict(format='pt'))
    assert damage(path) is None
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert 'not fully covered' in damage(path)
    for broken in (b'\xff' * 8 + content[8:], content[:20], b'abc', content[:8] + b'[]' * 30):
        path.write_bytes(broken)
        assert damage(path), broken[:30]
    path.write_bytes(struct.pack('<Q', 2**62) + content[8:])  # must not be allocated
    assert damage(path)


def test_the_old_format_cannot_be_checked(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(dict(a=torch.ones(3)), path, _use_new_zipfile_serialization=False)
    assert damage(path) is None
    path.write_bytes(b'<html>not found</html>')
    assert 'not a checkpoint' in damage(path)
