"""Records in place of images, and what is refused."""

from hashlib import sha256

import pytest
import torch
from tiny_cache import write_header

from mcbeit_mm.cached_targets.cache import encode
from mcbeit_mm.cached_targets.tokenizer import CachedTokenizer
from mcbeit_mm.tokenizers.base import Tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    write_header(tmp_path)
    return CachedTokenizer(tmp_path)


def test_replaces_a_tokenizer(tokenizer, tmp_path):
    assert isinstance(tokenizer, Tokenizer) and not list(tokenizer.parameters())
    assert (tokenizer.vocab_size, tokenizer.stride) == (24, 8)
    assert CachedTokenizer.geometry(checkpoint=tmp_path) == {'vocab_size': 24, 'stride': 8}
    given = torch.randn(2, 24, 4, 4)
    found = tokenizer(encode(given, 5, 4.0))
    assert found.shape == given.shape and found.dtype == torch.float32
    assert torch.equal(found.argmax(1), given.argmax(1))
    assert tokenizer(tokenizer.random_view(3, (4, 4))).shape == (3, 24, 4, 4)


def test_identity_is_that_of_the_header(tokenizer, tmp_path):
    identity = tokenizer.identity
    assert identity['type'] == 'CachedTokenizer'
    assert identity['checkpoint'] == str(tmp_path / 'cache.json')
    assert identity['sha256'] == sha256((tmp_path / 'cache.json').read_bytes()).hexdigest()
    write_header(tmp_path, k=6)
    assert CachedTokenizer(tmp_path).identity['sha256'] != identity['sha256']


def test_other_grids_and_temperatures_are_refused(tokenizer, tmp_path):
    view = tokenizer.random_view(1, (4, 4))
    tokenizer.check_view(view, (4, 4), 4.0)
    tokenizer.check_view(view, (4, 4), 0)  # needs the best code only
    with pytest.raises(ValueError, match=r'targets for \(4, 4\) patches.*training uses \(4, 5\)'):
        tokenizer.check_view(view, (4, 5), 4.0)
    with pytest.raises(ValueError, match='tau=4, training uses .* and 2: build a cache'):
        tokenizer.check_view(view, (4, 4), 2.0)
    write_header(tmp_path, k=24)
    CachedTokenizer(tmp_path).check_view(view, (4, 4), 2.0)  # all codes serve any temperature


@pytest.mark.parametrize(
    'records', [torch.rand(2, 3, 32, 32), torch.zeros(2, 16, 11), torch.zeros(2, 16, 9).short()]
)
def test_other_tensors_are_refused(tokenizer, records):
    with pytest.raises(ValueError, match=r'expected cached records int16 \(B, 16, 11\)'):
        tokenizer(records)


def test_decoding_and_precision_are_refused(tokenizer):
    with pytest.raises(ValueError, match='set model.target_generator to the tokenizer'):
        tokenizer.decode(torch.zeros(1, 4, 4, dtype=torch.long))
    tokenizer.precision = 'bf16'
    with pytest.raises(ValueError, match='set tokenizer_precision'):
        tokenizer(tokenizer.random_view(1, (4, 4)))


@pytest.mark.gpu
def test_records_decode_alike_on_cuda(tokenizer):
    records = tokenizer.random_view(3, (4, 4))
    assert torch.equal(tokenizer(records.cuda()).cpu(), tokenizer(records))
