"""Token logits -> a record of fixed size that keeps the best codes of each token, and back.

A record holds, for all L tokens of an image, the k largest logits, one logit that stands for each
of the other codes, and the k codes. That one logit gives the others together the probability that
they have at temperature `tau`, so the kept probabilities are exact up to the type of number and
the others are spread evenly.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..targets import soft_probs

DTYPES = {'float16': torch.float16, 'float32': torch.float32}
MAX_VOCAB = 2**16  # codes are kept in two bytes


class RecordFormat(NamedTuple):
    """What the records of a cache hold; all of `vocab_size` codes are kept in order, without
    their numbers.

    `dtype` is 'float32' for the logits as they are or 'float16' for their distance to the largest
    of the token.
    """

    vocab_size: int
    grid: tuple[int, int]
    k: int
    tau: float
    dtype: str

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def parts(self) -> tuple[int, int, int]:
        """Bytes of kept logits, of the logits of the others, of codes."""
        kept, size = self.num_tokens * self.k, DTYPES[self.dtype].itemsize
        if self.k == self.vocab_size:
            return kept * size, 0, 0
        return kept * size, self.num_tokens * size, kept * 2

    @property
    def num_bytes(self) -> int:
        """Bytes of a record."""
        return sum(self.parts)

    def check(self) -> 'RecordFormat':
        """Return the format; ValueError if no record can have it."""
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype is {self.dtype!r}, expected one of {tuple(DTYPES)}')
        if not 1 <= self.k <= self.vocab_size <= MAX_VOCAB:
            raise ValueError(
                f'k is {self.k} of {self.vocab_size} codes, expected 1 <= k <= codes <= {MAX_VOCAB}'
            )
        if self.tau < 0:
            raise ValueError(f'tau is {self.tau}, expected 0 or more')
        return self


def encode(token_logits: Tensor, record: RecordFormat) -> Tensor:
    """Records (B, num_bytes) uint8 of token logits (B, V, h, w) in fp32, on the same device."""
    logits = token_logits.flatten(2).transpose(1, 2)
    if record.dtype == 'float16':
        logits = logits - logits.amax(-1, keepdim=True)
    dtype = DTYPES[record.dtype]
    if record.k == record.vocab_size:
        return _as_bytes(logits.to(dtype))
    kept, codes = logits.topk(record.k, dim=-1)
    others = logits.scatter(-1, codes, -torch.inf)
    tau = record.tau or 1.0  # with tau = 0 the others have no probability, wherever they lie
    level = (others / tau).logsumexp(-1) - np.log(record.vocab_size - record.k)
    # Not above the least of the kept: at tau = 0, or after rounding, another code would be best.
    level = torch.minimum(level * tau, kept[..., -1]).to(dtype)
    # torch's 16-bit integers have a sign; the bits are the same.
    return torch.cat([_as_bytes(kept.to(dtype)), _as_bytes(level), _as_bytes(codes.short())], 1)


def decode(records: Tensor, record: RecordFormat) -> Tensor:
    """Token logits (B, V, h, w) in fp32 of records (B, num_bytes) uint8."""
    if records.dtype != torch.uint8 or records.shape[1:] != (record.num_bytes,):
        raise ValueError(
            f'expected records of {record.num_bytes} bytes, got {records.dtype} '
            f'{tuple(records.shape)}: a tokenizer view where a cached record belongs?'
        )
    dtype = DTYPES[record.dtype]
    kept, level, codes = records.split(record.parts, dim=1)
    logits = _from_bytes(kept, dtype).view(len(records), record.num_tokens, record.k).float()
    if record.k < record.vocab_size:
        numbers = _from_bytes(codes, torch.int16).view(logits.shape).long() & 0xFFFF
        level = _from_bytes(level, dtype).float().unsqueeze(-1)
        full = level.repeat(1, 1, record.vocab_size)
        logits = full.scatter_(-1, numbers, logits)
    return logits.transpose(1, 2).unflatten(2, record.grid)


class Fidelity(NamedTuple):
    """Means over tokens: `mass` of the kept codes, `kl` of the record's probabilities from the
    exact ones in nats, `changed` share of other best codes.
    """

    mass: float
    kl: float
    changed: float


def fidelity(token_logits: Tensor, record: RecordFormat, tau: float | None = None) -> Fidelity:
    """How well a format keeps token logits (B, V, h, w), at its own or another temperature."""
    tau = record.tau if tau is None else tau
    exact = soft_probs(token_logits.double(), tau)
    cached_logits = decode(encode(token_logits, record), record)
    cached = soft_probs(cached_logits.double(), tau)
    mass = exact.topk(record.k, dim=-1).values.sum(-1).mean()
    kl = torch.where(exact > 0, exact * (exact.log() - cached.log()), 0.0).sum(-1).mean()
    changed = (cached_logits.argmax(1) != token_logits.argmax(1)).double().mean()
    return Fidelity(mass.item(), kl.item(), changed.item())


def _as_bytes(x: Tensor) -> Tensor:
    return x.flatten(1).contiguous().view(torch.uint8)


def _from_bytes(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.contiguous().view(dtype)  # a copy, since the parts begin at any byte
