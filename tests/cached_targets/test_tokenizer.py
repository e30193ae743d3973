"""Records in the place of images, and what is refused."""

import pytest
import torch

from mcbeit_mm.cached_targets.cache import MANIFEST, CachePlan, open_cache
from mcbeit_mm.cached_targets.records import RecordFormat, encode
from mcbeit_mm.cached_targets.tokenizer import CachedTokenizer
from mcbeit_mm.tokenizers.base import Tokenizer

RECORD = RecordFormat(24, (4, 4), 5, 4.0, 'float16')


@pytest.fixture
def folder(tmp_path):
    open_cache.cache_clear()
    plan = CachePlan(RECORD, 0, 1, 0, 1, 8, dict(size=64), dict(type='GumbelVQGANTokenizer'))
    (tmp_path / MANIFEST).write_text(plan.as_json())
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    return CachedTokenizer(folder)


def test_stands_where_a_tokenizer_stands(tokenizer, folder):
    assert isinstance(tokenizer, Tokenizer) and not list(tokenizer.parameters())
    assert (tokenizer.vocab_size, tokenizer.stride) == (24, 8)
    assert CachedTokenizer.geometry(checkpoint=folder) == {'vocab_size': 24, 'stride': 8}
    given = torch.randn(2, 24, 4, 4)
    found = tokenizer(encode(given, RECORD))
    assert found.shape == given.shape and found.dtype == torch.float32
    assert torch.equal(found.argmax(1), given.argmax(1))
    assert tokenizer(tokenizer.random_view(3, (4, 4))).shape == (3, 24, 4, 4)


def test_identity_is_that_of_the_manifest(tokenizer, folder):
    identity = tokenizer.identity
    assert identity['type'] == 'CachedTokenizer' and len(identity['sha256']) == 64
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"k": 5', '"k": 6'))
    open_cache.cache_clear()
    assert CachedTokenizer(folder).identity['sha256'] != identity['sha256']


def test_other_grids_and_temperatures_are_refused(tokenizer):
    view = tokenizer.random_view(1, (4, 4))
    tokenizer.check_view(view, (4, 4), 4.0)
    tokenizer.check_view(view, (4, 4), 0)  # the best code is kept
    with pytest.raises(ValueError, match='a cache for'):
        tokenizer.check_view(view, (4, 5), 4.0)
    with pytest.raises(ValueError, match='for tau=4, training uses 2'):
        tokenizer.check_view(view, (4, 4), 2.0)
    tokenizer.record = RECORD._replace(k=24)
    tokenizer.check_view(view, (4, 4), 2.0)  # all codes serve any temperature


def test_what_a_cache_cannot_do_is_said(tokenizer):
    with pytest.raises(ValueError, match='cannot be decoded'):
        tokenizer.decode(torch.zeros(1, 4, 4, dtype=torch.long))
    tokenizer.precision = 'bf16'
    with pytest.raises(ValueError, match='leave tokenizer_precision'):
        tokenizer(tokenizer.random_view(1, (4, 4)))


@pytest.mark.gpu
def test_records_decode_alike_on_cuda(tokenizer):
    records = tokenizer.random_view(3, (4, 4))
    assert torch.equal(tokenizer(records.cuda()).cpu(), tokenizer(records))
