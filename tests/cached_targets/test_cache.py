"""Records keep the k best codes of each token; damaged, unfinished and old caches are refused."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from tiny_cache import (
    NUM_IMAGES,
    UNREADABLE_IMAGE,
    make_cache,
    photo_size,
    tiny_config,
    write_header,
    write_photos,
)

from mcbeit_mm.cached_targets.cache import (
    HEADER,
    IMAGES,
    TARGETS,
    UNREADABLE,
    Header,
    decode,
    encode,
    image_check,
    open_arrays,
    read_header,
)
from mcbeit_mm.targets import soft_probs


def logits(vocab_size=37, grid=(3, 2), batch=4, scale=8.0):
    return scale * torch.randn(batch, vocab_size, *grid)


def restored(given, k, tau):
    return decode(encode(given, k, tau), given.shape[1], given.shape[2:])


def truncated(token_logits, k, tau):
    """Probabilities (B, L, V) in double: the k best unchanged, the rest spread evenly."""
    probs = soft_probs(token_logits.double(), tau)
    for row in probs.view(-1, probs.shape[-1]):
        order = row.argsort(descending=True)
        row[order[k:]] = row[order[k:]].sum() / len(order[k:])
    return probs


@pytest.mark.parametrize('grid', [(3, 2), (1, 1), (2, 5)])
@pytest.mark.parametrize('strided', [False, True])
def test_all_codes_are_the_logits_relative_to_the_best(grid, strided):
    given = logits(grid=grid)
    if strided:  # as a channels_last tokenizer returns them
        given = given.contiguous(memory_format=torch.channels_last)
    expected = (given - given.amax(1, keepdim=True)).half().float()
    assert torch.equal(restored(given, 37, 4.0), expected)


@pytest.mark.parametrize('k', [1, 5, 36])
@pytest.mark.parametrize('tau', [0.5, 4.0])
def test_best_codes_keep_their_probabilities(k, tau):
    given = logits()
    records = encode(given, k, tau)
    assert records.dtype == torch.int16 and records.shape == (4, 6, 2 * k + 1)
    cached = decode(records, 37, (3, 2))
    # fp16 rounds a logit 32 below the best by 2^-6 at most; tau divides that.
    ratio = soft_probs(cached.double(), tau) / truncated(given, k, tau)
    assert (ratio - 1).abs().max() < 6e-3 * max(1, 4 / tau)
    assert torch.equal(cached.argmax(1), given.argmax(1))


def test_tau_0_keeps_the_best_code():
    given = logits()
    assert torch.equal(soft_probs(restored(given, 2, 0.0), 0), soft_probs(given, 0))


def test_large_vocabularies_and_equal_logits():
    given = torch.zeros(1, 2**16, 1, 1)
    given[0, -1] = 1  # code 65535: above the range of int16
    got = restored(given, 3, 1.0)
    assert got.argmax(1).item() == 65535
    assert got.softmax(1)[0, -1].item() == pytest.approx(given.softmax(1)[0, -1].item(), rel=1e-3)


def test_logits_far_from_0_keep_their_differences():
    given = logits(scale=1.0) + 1000 * math.pi
    got = restored(given, 37, 1.0).softmax(1)
    assert (got - given.softmax(1)).abs().max() < 2e-3


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(k=0), 'k is 0 of 24 codes'),
        (dict(k=25), 'k is 25 of 24 codes'),
        (dict(vocab_size=2**16 + 1), '65537 codes'),
        (dict(num_crops=0), 'number of crops is 0'),
    ],
)
def test_impossible_headers(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_header(tmp_path, **changes)


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


def test_every_crop_has_a_record_of_its_own(folder):
    header = read_header(folder)
    assert header.shape == (NUM_IMAGES, 3, 16, 2 * 16 + 1) and header.stride == 2
    assert header.tokenizer['precision'] == 'fp32' and len(header.tokenizer['sha256']) == 64
    records, images = open_arrays(str(folder))
    assert isinstance(records, np.memmap) and records.dtype == np.int16
    good = [i for i in range(NUM_IMAGES) if i != UNREADABLE_IMAGE]
    assert len({records[i, crop].tobytes() for i in good for crop in range(3)}) == 3 * len(good)
    checks = [image_check(f'/elsewhere/{i}.jpg', photo_size(i)) for i in range(NUM_IMAGES)]
    checks[UNREADABLE_IMAGE] = UNREADABLE
    assert images.tolist() == checks and len(set(checks)) == NUM_IMAGES


def test_header_round_trip(tmp_path):
    header = write_header(tmp_path)
    assert read_header(tmp_path) == header and isinstance(header, Header)
    assert pickle.loads(pickle.dumps(header)) == header


def test_an_unfinished_or_missing_cache_is_refused(folder, tmp_path):
    (folder / HEADER).unlink()
    for opened in (read_header, open_arrays):
        with pytest.raises(FileNotFoundError, match='unfinished cache.*tools/cache_targets.py'):
            opened(str(folder))
        with pytest.raises(FileNotFoundError, match='no cached targets in'):
            opened(str(tmp_path / 'nowhere'))


@pytest.mark.parametrize('name', [TARGETS, IMAGES])
@pytest.mark.parametrize('length', [-1, 60, 0])
def test_a_truncated_file_is_refused(folder, name, length):
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    with pytest.raises(ValueError, match='copy the cache again'):
        open_arrays(str(folder))


def test_arrays_of_another_cache_are_refused(folder):
    np.save(folder / IMAGES, np.zeros(NUM_IMAGES + 1, np.uint32))
    with pytest.raises(ValueError, match=r'shapes .*\(7,\).*copy the cache again'):
        open_arrays(str(folder))
    (folder / IMAGES).unlink()
    with pytest.raises(FileNotFoundError):
        open_arrays(str(folder))


@pytest.mark.parametrize(
    'text', ['', '[]', '{}', '{"format": 1, "record": {"grid": [1]}}', '{"format": 2, "grid": [1]}']
)
def test_old_and_damaged_headers_are_refused_with_the_remedy(folder, text):
    (folder / HEADER).write_text(text)
    with pytest.raises(ValueError, match='build the cache with tools/cache_targets.py again'):
        read_header(folder)
    if 'record' in text:
        with pytest.raises(ValueError, match='format 1, expected 2'):
            read_header(folder)


def test_headers_name_all_settings(folder):
    content = json.loads((folder / HEADER).read_text())
    assert content['crop']['second_interpolation'] == 'lanczos'
    assert (content['k'], content['tau'], content['seed'], content['format']) == (16, 4.0, 0, 2)
