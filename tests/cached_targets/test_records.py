"""Records keep what they say they keep, checked against the definition in double precision."""

import math

import pytest
import torch

from mcbeit_mm.cached_targets.records import RecordFormat, decode, encode, fidelity
from mcbeit_mm.targets import soft_probs


def logits(vocab_size=37, grid=(3, 2), batch=4, scale=8.0):
    return scale * torch.randn(batch, vocab_size, *grid)


def kept_by_hand(token_logits, k, tau):
    """Probabilities (B, L, V): the k best as they are, the rest spread evenly; in double."""
    probs = soft_probs(token_logits.double(), tau)
    for row in probs.view(-1, probs.shape[-1]):
        order = row.argsort(descending=True)
        row[order[k:]] = row[order[k:]].sum() / len(order[k:])
    return probs


@pytest.mark.parametrize('grid', [(3, 2), (1, 1), (2, 5)])
@pytest.mark.parametrize('strided', [False, True])
def test_all_codes_in_fp32_are_the_same_bits(grid, strided):
    given = logits(grid=grid)
    if strided:  # as a channels_last tokenizer leaves them
        given = given.contiguous(memory_format=torch.channels_last)
    record = RecordFormat(37, grid, 37, 4.0, 'float32')
    assert torch.equal(decode(encode(given, record), record), given)


@pytest.mark.parametrize('dtype, bound', [('float32', 2e-6), ('float16', 6e-3)])
@pytest.mark.parametrize('k', [1, 5, 36])
@pytest.mark.parametrize('tau', [0.5, 4.0])
def test_best_codes_keep_their_probabilities(dtype, bound, k, tau):
    given, record = logits(), RecordFormat(37, (3, 2), k, tau, dtype)
    records = encode(given, record)
    assert records.dtype == torch.uint8 and records.shape == (4, record.num_bytes)
    got = soft_probs(decode(records, record).double(), tau)
    expected = kept_by_hand(given, k, tau)
    # In fp16 a logit that is 32 below the best is off by 2^-6 at most; tau divides that.
    assert (got / expected - 1).abs().max() < bound * max(1, 4 / tau)
    assert torch.equal(decode(records, record).argmax(1), given.argmax(1))


def test_tau_0_keeps_the_best_code():
    given, record = logits(), RecordFormat(37, (3, 2), 2, 0.0, 'float16')
    got = soft_probs(decode(encode(given, record), record), 0)
    assert torch.equal(got, soft_probs(given, 0))


def test_large_vocabularies_and_equal_logits():
    given = torch.zeros(1, 2**16, 1, 1)
    given[0, -1] = 1  # code 65535: above the range of signed 16 bits
    record = RecordFormat(2**16, (1, 1), 3, 1.0, 'float16')
    got = decode(encode(given, record), record)
    assert got.argmax(1).item() == 65535
    assert got.softmax(1)[0, -1].item() == pytest.approx(given.softmax(1)[0, -1].item(), rel=1e-3)


def test_fidelity_is_that_of_the_definition():
    given, tau, k = logits().double().float(), 2.0, 4
    exact, cached = soft_probs(given.double(), tau), kept_by_hand(given, k, tau)
    found = fidelity(given, RecordFormat(37, (3, 2), k, tau, 'float32'))
    kl = (exact * (exact / cached).log()).sum(-1).mean().item()
    assert found.kl == pytest.approx(kl, rel=1e-4) and found.kl > 1e-3
    mass = exact.sort(-1, descending=True).values[..., :k].sum(-1).mean().item()
    assert found.mass == pytest.approx(mass, rel=1e-6)
    assert found.changed == 0
    other = fidelity(given, RecordFormat(37, (3, 2), k, tau, 'float32'), tau=8.0)
    assert other.kl > found.kl  # the others' share belongs to the record's own tau


def test_more_codes_are_closer():
    given = logits()
    found = [fidelity(given, RecordFormat(37, (3, 2), k, 4.0, 'float16')) for k in (1, 4, 16, 37)]
    assert [f.mass for f in found] == sorted(f.mass for f in found)
    assert [f.kl for f in found] == sorted((f.kl for f in found), reverse=True)
    assert found[-1].mass == pytest.approx(1) and found[-1].kl < 1e-6


def test_sizes():
    tokens = 14 * 14
    record = RecordFormat(8192, (14, 14), 64, 4.0, 'float16')
    assert record.num_bytes == tokens * (64 * 2 + 2 + 64 * 2) == 50568
    assert record._replace(k=8192).num_bytes == tokens * 8192 * 2  # no code numbers
    assert record._replace(k=8192, dtype='float32').num_bytes == tokens * 8192 * 4


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(k=0), 'k is 0 of 8 codes'),
        (dict(k=9), 'k is 9 of 8 codes'),
        (dict(vocab_size=2**16 + 1), '65537 codes'),
        (dict(dtype='int8'), "dtype is 'int8'"),
        (dict(tau=-1.0), 'tau is -1'),
    ],
)
def test_impossible_formats(changes, message):
    record = RecordFormat(8, (2, 2), 4, 4.0, 'float16')
    assert record.check() is record
    with pytest.raises(ValueError, match=message):
        record._replace(**changes).check()


@pytest.mark.parametrize('records', [torch.rand(2, 3, 16, 16), torch.zeros(2, 7).byte()])
def test_other_tensors_are_refused(records):
    with pytest.raises(ValueError, match='expected records of 72 bytes'):
        decode(records, RecordFormat(8, (2, 2), 4, 4.0, 'float16'))


def test_shift_spares_fp16_its_range():
    """Logits far from 0 keep their differences."""
    given = logits(scale=1.0) + 1000 * math.pi
    record = RecordFormat(37, (3, 2), 37, 1.0, 'float16')
    got = decode(encode(given, record), record).softmax(1)
    assert (got - given.softmax(1)).abs().max() < 2e-3
