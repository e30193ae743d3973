"""Token logits read from a cache of targets instead of computed."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ..errors import SetupError
from ..tokenizers.base import Tokenizer
from .cache import HEADER, decode, encode, read_header


@MODELS.register_module()
class CachedTokenizer(Tokenizer):
    """Decodes the records of `CachedTargetsCrop`, in place of the tokenizer that computed them.

    Args:
        checkpoint: folder of the cache.
    """

    def __init__(self, checkpoint: str | os.PathLike):
        super().__init__()
        self.header = read_header(checkpoint)
        self.vocab_size, self.stride = self.header.vocab_size, self.header.stride
        self.freeze(Path(checkpoint, HEADER))  # names tokenizer and crops: the identity

    @classmethod
    def geometry(cls, checkpoint: str | os.PathLike) -> dict[str, int]:
        """Return vocab_size and stride."""
        header = read_header(checkpoint)
        return {'vocab_size': header.vocab_size, 'stride': header.stride}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return token logits (B, V, h, w) of records (B, L, 2k + 1), which replace images."""
        if self.precision != 'fp32' or self.compiled:
            raise SetupError(
                'cached targets are read, not computed: set tokenizer_precision and '
                'compile_tokenizer with --cfg-options of tools/cache_targets.py, not in training'
            )
        expected = self.header.shape[2:]
        if images.dtype != torch.int16 or images.shape[1:] != expected:
            raise ValueError(
                f'expected cached records int16 (B, {expected[0]}, {expected[1]}), got '
                f'{images.dtype} {tuple(images.shape)}: use CachedTargetsCrop in the pipeline'
            )
        return decode(images, self.vocab_size, self.header.grid)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Raise ValueError: a cache has no decoder."""
        raise ValueError(
            f'{self.weights_file} has no decoder: set model.target_generator to the tokenizer to '
            'decode images'
        )

    def check_view(self, view: Tensor, patches: Sequence[int], tau: float) -> None:
        """Raise SetupError unless the cache fits these patches (h, w) and this tau."""
        header = self.header
        wrong_tau = header.k < header.vocab_size and tau not in (0, header.tau)
        if tuple(patches) != header.grid or wrong_tau:
            raise SetupError(
                f'{self.weights_file}: targets for {header.grid} patches and tau={header.tau:g},'
                f' training uses {tuple(patches)} and {tau:g}: build a cache from this config'
            )

    def random_view(self, batch: int, patches: Sequence[int]) -> Tensor:
        """Return records of random logits, for dry runs."""
        logits = torch.randn(batch, self.vocab_size, *patches)
        return encode(logits, self.header.k, self.header.tau)
