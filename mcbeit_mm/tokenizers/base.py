"""Base class of the image tokenizers, and checks of their sizes."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from ..fileio.pins import check_pin, sha256_of, split_pin
from ..weights.reading import read_checkpoint, state_dict_of
from .release import find_weights

PRECISIONS = ('fp32', 'bf16', 'fp16')


class Tokenizer(nn.Module):
    """Frozen image tokenizer: images in [0, 1] -> token_logits, and tokens -> images.

    Subclasses set ``vocab_size`` and ``stride``, implement ``encode`` and ``decode_tokens`` on
    images in their own normalization, and call :meth:`load` or :meth:`freeze` at the end of the
    constructor. A class method ``geometry(**constructor_arguments) -> {'vocab_size': V, 'stride':
    s}`` that reads no weights allows configs to be checked before anything is built. The module is
    always in eval mode, without gradients, and computes in fp32 also under autocast.

    Attributes:
        precision: autocast type of `encode`, one of PRECISIONS; logits are always fp32.
        compiled: run `encode` through torch.compile.
        weight_names: names of the weight file in a checkpoint folder.
        decoder_parts: modules that only decoding needs; None if the checkpoint lacks them.
        hint: what to do about a missing checkpoint.
    """

    vocab_size: int
    stride: int
    weights_file: str | os.PathLike | None = None
    precision: str = 'fp32'
    compiled: bool = False
    weight_names: Sequence[str] = ()
    decoder_parts: Sequence[str] = ()
    hint: str = ''

    def encode(self, x: Tensor) -> Tensor:
        """Return token_logits (B, V, H/stride, W/stride) of normalized images (B, 3, H, W)."""
        raise NotImplementedError

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Return normalized images of ids (B, h, w) or probs (B, V, h, w)."""
        raise NotImplementedError

    def normalize(self, images: Tensor) -> Tensor:
        """Map [0, 1] to the range of ``encode``, by default [-1, 1]."""
        return 2 * images - 1

    def denormalize(self, x: Tensor) -> Tensor:
        """Invert :meth:`normalize`."""
        return (x + 1) / 2

    def load(self, checkpoint: str | os.PathLike | None) -> None:
        """Load a file or folder and freeze; None keeps the random weights.

        Raises:
            FileNotFoundError: no such file or folder, or a folder without `weight_names`.
            ValueError: the weights cannot be read, do not match their pin or do not fit.
        """
        file = find_weights(checkpoint, self.weight_names, self.hint)
        if file is None:
            print_log(f'{type(self).__name__}: no checkpoint, random weights', 'current')
        else:
            weights = self.read_weights(check_pin(file, split_pin(checkpoint)[1]))
            self._load_weights(weights, file)
        self.freeze(file)

    def read_weights(self, file: Path) -> dict[str, Tensor]:
        """Return the tensors of a weight file under the names of this module."""
        return state_dict_of(read_checkpoint(file))

    def _load_weights(self, weights: Mapping[str, Tensor], file: Path) -> None:
        """Load weights, which may have extra entries (losses, discriminator) and no decoder."""
        decoder = tuple(f'{part}.' for part in self.decoder_parts)
        if not any(name.startswith(decoder) for name in weights):
            for part in self.decoder_parts:
                setattr(self, part, None)
        expected = self.state_dict()
        if unused := [name for name in weights if name not in expected]:
            print_log(f'{file}: {len(unused)} unused entries ({unused[0]}, ...)', 'current')
        try:
            self.load_state_dict({k: v for k, v in weights.items() if k in expected})
        except RuntimeError as error:
            reason = shorten(str(error), 500, placeholder=' ...')
            raise ValueError(f'{file}: {reason} Check the sizes in the config') from error

    def freeze(self, weights_file: str | os.PathLike | None = None) -> None:
        """Disable gradients, switch to eval mode and record the source of the weights."""
        self.weights_file = weights_file
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> 'Tokenizer':
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return token_logits (B, V, H/stride, W/stride), fp32, of float images in [0, 1].

        Args:
            images: (B, 3, H, W); H and W are multiples of ``stride``.
        """
        self._check_images(images)
        half = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(self.precision)
        with torch.autocast(images.device.type, half, enabled=half is not None):
            x = self.normalize(images.float()).contiguous(memory_format=torch.channels_last)
            encode = self._compiled_encode if self.compiled else self.encode
            return encode(x).float()

    @cached_property
    def _compiled_encode(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self.encode)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Reconstruct images (B, 3, h * stride, w * stride) in [0, 1], fp32, without sampling.

        Args:
            tokens: integer ids (B, h, w) in [0, V), or float probs (B, V, h, w).

        Raises:
            ValueError: invalid tokens, or the tokenizer has no decoder.
        """
        self._check_tokens(tokens)
        if getattr(self, 'decoder', self) is None:
            raise ValueError(f'{self.weights_file}: no decoder weights, cannot decode')
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float() if tokens.is_floating_point() else tokens.long()
            return self.denormalize(self.decode_tokens(tokens)).clamp(0, 1)

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """Type, checkpoint path and SHA-256 of the weight file or, without one, of all tensors."""
        file = self.weights_file
        return {
            'type': type(self).__name__,
            'checkpoint': None if file is None else os.fspath(file),
            'sha256': sha256_of_tensors(self.state_dict()) if file is None else sha256_of(file),
        }

    def check_view(self, view: Tensor, patches: Sequence[int], tau: float) -> None:
        """Raise ValueError unless a view (B, 3, H, W) has one token per patch (h, w).

        Subclasses may also restrict `tau`, the temperature of the targets.
        """
        check_tokens(view.shape[2:], self.stride, patches)

    def random_view(self, batch: int, patches: Sequence[int]) -> Tensor:
        """Return random images (B, 3, h * stride, w * stride) in [0, 1], for dry runs."""
        return torch.rand(batch, 3, *(side * self.stride for side in patches))

    def _check_images(self, images: Tensor) -> None:
        ok = images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point()
        if not ok or any(size % self.stride or not size for size in images.shape[2:]):
            raise ValueError(
                f'{type(self).__name__} takes float images (B, 3, H, W) in [0, 1] with H and W '
                f'multiples of {self.stride}, got {images.dtype} {tuple(images.shape)}: resize the '
                'tokenizer view, or divide uint8 images by 255'
            )

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.is_floating_point():
            ok = tokens.ndim == 4 and tokens.shape[1] == self.vocab_size
        else:
            ok = tokens.ndim == 3 and tokens.dtype != torch.bool
            ok = ok and bool(((tokens >= 0) & (tokens < self.vocab_size)).all())
        if not ok:
            raise ValueError(
                f'decode takes integer ids (B, h, w) in [0, {self.vocab_size}) or float probs '
                f'(B, {self.vocab_size}, h, w), got {tokens.dtype} {tuple(tokens.shape)}'
            )


def embed_tokens(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Return latents (B, D, h, w): codes (V, D) at ids, or their mean under probs."""
    if tokens.is_floating_point():
        return torch.einsum('bvhw,vd->bdhw', tokens, codebook)
    return F.embedding(tokens, codebook).permute(0, 3, 1, 2)


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_tokens(view: Sequence[int], stride: int, patches: Sequence[int], where: str = '') -> None:
    """Raise ValueError unless a tokenizer view (H, W) has one token per patch (h, w)."""
    expected = tuple(size * stride for size in patches)
    if tuple(view) != expected:
        tokens = 'x'.join(f'{size / stride:g}' for size in view)
        raise ValueError(
            f'the tokenizer view of {size_text(view)} pixels gives {tokens} tokens (stride '
            f'{stride}) for {size_text(patches)} patches: set '
            f'second_size={size_argument(expected)}{where}'
        )


def check_vocab(head: int | None, tokenizer: int) -> None:
    """Raise ValueError unless the head has the tokenizer's number of codes, or None."""
    if head not in (None, tokenizer):
        raise ValueError(
            f'the tokenizer has {tokenizer} codes, the head predicts {head}: set '
            f"model.head.vocab_size={tokenizer} (or None: the tokenizer's)"
        )


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert images (B, 3, H, W) in [0, 1] to uint8 arrays (B, H, W, 3)."""
    return (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def size_text(size: Sequence[int]) -> str:
    """Format a size (H, W) for messages: 16x8."""
    return f'{size[0]}x{size[1]}'


def size_argument(size: Sequence[int]) -> str:
    """Format a size (H, W) for configs: 16, or (16, 8)."""
    return str(size[0]) if size[0] == size[1] else f'({size[0]}, {size[1]})'
