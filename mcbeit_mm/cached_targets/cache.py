"""Cached targets on disk: the k best codes of each token of fixed crops.

A cache is a folder of three files:
    targets.npy  records (images, crops, tokens, 2k + 1) int16, memory-mapped; see `encode`
    images.npy   `image_check` of each image, or UNREADABLE
    cache.json   the `Header`, written last: without it the cache is unfinished
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..fileio.atomic_files import write_atomically

HEADER, TARGETS, IMAGES = 'cache.json', 'targets.npy', 'images.npy'
FORMAT = 2
UNREADABLE = 0
MAX_VOCAB = 2**16  # codes are stored in 16 bits


@dataclass(frozen=True)
class Header:
    """Contents of a cache: `grid` tokens (h, w) per crop, `stride` pixels per token, `crop` the
    arguments of TwoViewRandomResizedCrop, `tokenizer` its identity and precision.
    """

    vocab_size: int
    stride: int
    grid: tuple[int, int]
    k: int
    tau: float
    num_images: int
    num_crops: int
    seed: int
    crop: dict[str, Any]
    tokenizer: dict[str, Any]
    format: int = FORMAT

    def __post_init__(self):
        if not 1 <= self.k <= self.vocab_size <= MAX_VOCAB:
            raise ValueError(
                f'k is {self.k} of {self.vocab_size} codes, expected 1 <= k <= codes <= {MAX_VOCAB}'
            )
        if self.tau < 0:
            raise ValueError(f'tau is {self.tau}, expected 0 or more')
        if self.num_crops < 1:
            raise ValueError(f'the number of crops is {self.num_crops}, expected 1 or more')

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the records: images, crops, tokens, values per token."""
        return self.num_images, self.num_crops, math.prod(self.grid), 2 * self.k + 1

    def write(self, folder: str | os.PathLike) -> None:
        """Write cache.json, which completes a cache."""
        write_atomically(Path(folder, HEADER), json.dumps(asdict(self), indent=2) + '\n')


def encode(token_logits: Tensor, k: int, tau: float) -> Tensor:
    """Encode token logits (B, V, h, w) as records (B, L, 2k + 1) int16.

    Per token: the k largest logits in descending order, one logit shared by all other codes, and
    the k codes. The shared logit gives the other codes together the probability they have at
    `tau`. Logits are relative to the largest, as the bits of float16.
    """
    logits = token_logits.flatten(2).transpose(1, 2)
    logits = logits - logits.amax(-1, keepdim=True)
    kept, codes = logits.topk(k, dim=-1)
    others = logits.scatter(-1, codes, -torch.inf)
    scale = tau or 1.0  # at tau = 0 the other codes have no probability anyway
    mean = (others / scale).logsumexp(-1, keepdim=True) - math.log(max(logits.shape[-1] - k, 1))
    # Neither rounding nor tau = 0 may make another code the best.
    shared = torch.minimum(mean * scale, kept[..., -1:])
    bits = torch.cat([kept, shared], -1).half().view(torch.int16)
    return torch.cat([bits, codes.short()], -1)


def decode(records: Tensor, vocab_size: int, grid: tuple[int, int]) -> Tensor:
    """Decode records (B, L, 2k + 1) to token logits (B, V, h, w) in fp32."""
    k = records.shape[-1] // 2
    logits = records[..., : k + 1].view(torch.float16).float()
    codes = records[..., k + 1 :].long() & 0xFFFF  # stored without a sign
    full = logits[..., k:].repeat(1, 1, vocab_size).scatter_(-1, codes, logits[..., :k])
    return full.transpose(1, 2).unflatten(2, grid)


def image_check(path: str | os.PathLike, shape: tuple[int, int]) -> int:
    """Return a checksum of file name and image size (H, W), never UNREADABLE."""
    text = f'{os.path.basename(path)} {shape[0]}x{shape[1]}'
    return crc32(text.encode(errors='surrogateescape')) or 1


def read_header(folder: str | os.PathLike) -> Header:
    """Read the header of a complete cache.

    Raises:
        FileNotFoundError: no cache, or an unfinished one.
        ValueError: another format.
    """
    file, remedy = Path(folder, HEADER), 'build the cache with tools/cache_targets.py'
    if not file.is_file():
        state = 'an unfinished cache' if Path(folder, TARGETS).is_file() else 'no cached targets'
        raise FileNotFoundError(f'{state} in {folder}: {remedy}')
    try:
        content = json.loads(file.read_text())
        if content['format'] != FORMAT:
            raise ValueError(f'format {content["format"]}, expected {FORMAT}')
        return Header(**content | dict(grid=tuple(content['grid'])))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} is not usable ({error!r}): {remedy} again') from error


@cache
def open_arrays(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Memory-map records and image checks, once per process.

    Do not store them in objects that are pickled or copied: the copy would be read into memory.
    """
    shape = read_header(folder).shape
    try:
        records, images = (np.load(Path(folder, name), mmap_mode='r') for name in (TARGETS, IMAGES))
        if records.shape != shape or images.shape != shape[:1]:
            raise ValueError(f'shapes {records.shape} and {images.shape}, expected {shape}')
    except (ValueError, EOFError) as error:
        raise ValueError(f'{folder} is damaged ({error}): copy the cache again') from error
    return records, images
