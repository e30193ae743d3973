"""What a tokenizer said of fixed crops, read from disk instead of computed."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ..errors import SetupError
from ..fileio.pins import sha256_of
from ..tokenizers.base import Tokenizer
from .cache import MANIFEST, open_cache
from .records import decode, encode


@MODELS.register_module()
class CachedTokenizer(Tokenizer):
    """Turns the records that `CachedTargetsCrop` reads into token logits (B, V, h, w).

    It stands where the tokenizer stood that made the cache (tools/cache_targets.py), without its
    weights. Only the best codes of a token are kept, see token_records.py.

    Args:
        checkpoint: folder of the cache.

    Raises:
        FileNotFoundError: no cache, or an unfinished one.
    """

    def __init__(self, checkpoint: str | os.PathLike):
        super().__init__()
        self.cache = open_cache(checkpoint)
        self.record = self.cache.record
        self.vocab_size, self.stride = self.record.vocab_size, self.cache.stride
        self.freeze(checkpoint)

    @classmethod
    def geometry(cls, checkpoint: str | os.PathLike) -> dict[str, int]:
        """Return vocab_size and stride, as the manifest says."""
        cache = open_cache(checkpoint)
        return {'vocab_size': cache.record.vocab_size, 'stride': cache.stride}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Decode records (B, bytes) uint8, which stand where images do.

        SetupError if another precision or compilation is asked for.
        """
        if self.precision != 'fp32' or self.compiled:
            raise SetupError(
                'cached targets are not computed: leave tokenizer_precision and compile_tokenizer '
                'out, and give --cfg-options model.tokenizer_precision=... to '
                'tools/cache_targets.py'
            )
        return decode(images, self.record)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """A cache has no decoder: ValueError."""
        raise ValueError(
            f'{self.weights_file} holds cached targets, which cannot be decoded to images: give '
            'the tokenizer by --cfg-options model.target_generator'
        )

    def check_view(self, view: Tensor, patches: Sequence[int], tau: float) -> None:
        """Raise SetupError unless the cache was made for these patches (h, w) and this tau."""
        if tuple(patches) != self.record.grid:
            raise SetupError(
                f'{self.weights_file} is a cache for {self.record.grid} patches, the mask has '
                f'{tuple(patches)}: make a cache from a config of that size'
            )
        if self.record.k < self.vocab_size and tau not in (0, self.record.tau):
            raise SetupError(
                f'{self.weights_file} keeps {self.record.k} of {self.vocab_size} codes for tau='
                f'{self.record.tau:g}, training uses {tau:g}: make a cache from this config'
            )

    def random_view(self, batch: int, patches: Sequence[int]) -> Tensor:
        """Records of random logits, for dry runs."""
        return encode(torch.randn(batch, self.vocab_size, *patches), self.record)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """That of the cache: the SHA-256 of its manifest, which names tokenizer and crops."""
        return {
            'type': type(self).__name__,
            'checkpoint': os.fspath(self.weights_file),
            'sha256': sha256_of(self.cache.folder / MANIFEST),
        }
