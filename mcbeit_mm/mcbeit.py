"""MCBEiT: tokenizer, backbone and head wired as an mmpretrain self-supervised algorithm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from mmengine.registry import MODELS
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from .layers.blocks import check_choice
from .tokenizers.base import PRECISIONS, Tokenizer, check_vocab


@MODELS.register_module()
class MCBEiT(BaseSelfSupervisor):
    """Masked image modelling with multi-choice discretization (mc-BEiT, arXiv 2203.15371).

    `inputs` is [student view (B, 3, H, W) normalised, tokenizer view (B, 3, h*s, w*s) in [0, 1]]
    for a patch grid (h, w) and a tokenizer of stride s, or cached records instead of the second
    view; each data sample holds a `mask` (h, w), True = masked. The tokenizer (`target_generator`)
    follows the model's device but is no submodule: it stays out of the state dict, the optimizer
    and DistributedDataParallel. With `vocab_size=None` the head takes the tokenizer's.

    Args:
        tokenizer_precision: 'fp32', 'bf16' or 'fp16', see docs/benchmark.md for what it changes.
        compile_tokenizer: fuse the tokenizer by torch.compile.
        overlap_tokenizer: on CUDA, let the tokenizer run beside the backbone on a second stream.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        target_generator: dict | Tokenizer,
        data_preprocessor: dict | None = None,
        tokenizer_precision: str = 'fp32',
        compile_tokenizer: bool = False,
        overlap_tokenizer: bool = False,
        init_cfg: dict | None = None,
    ):
        # First, so that a missing tokenizer is found before a large backbone is initialised.
        if not isinstance(target_generator, Tokenizer):
            target_generator = MODELS.build(target_generator)
        vocab_size = target_generator.vocab_size
        if isinstance(head, dict) and head.get('vocab_size', vocab_size) is None:
            head = dict(head, vocab_size=vocab_size)
        check_choice('tokenizer_precision', tokenizer_precision, PRECISIONS)
        target_generator.precision = tokenizer_precision
        target_generator.compiled = compile_tokenizer
        super().__init__(
            backbone=backbone,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        del self.target_generator  # the base class registers the slot as a (None) attribute
        check_vocab(self.head.vocab_size, vocab_size)
        self._tokenizer = [target_generator]  # a list hides it from nn.Module
        self.overlap_tokenizer = overlap_tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen image tokenizer."""
        return self._tokenizer[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> 'MCBEiT':
        self.tokenizer._apply(fn)
        return super()._apply(fn, recurse)

    def extract_feat(self, inputs: Tensor | list[Tensor]) -> tuple[Tensor, ...]:
        """Features of unmasked images, as the backbone returns them."""
        return self.backbone(inputs[0] if isinstance(inputs, list) else inputs)

    def loss(self, inputs: list[Tensor], data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Tokenize the second view, encode the masked first view, compare on the masked patches."""
        student_view, tokenizer_view = inputs
        mask = torch.stack([sample.mask for sample in data_samples]).bool()
        self.tokenizer.check_view(tokenizer_view, mask.shape[1:], self.head.multi_choice.tau)
        mask = mask.flatten(1)
        device = student_view.device
        with self._second_stream(tokenizer_view):
            token_logits = self.tokenizer(tokenizer_view)
        feats = self.backbone(student_view, mask.to(device, non_blocking=True))[-1][:, 1:]
        self._join(token_logits)
        return self.head.loss(feats, token_logits, mask)

    @contextmanager
    def _second_stream(self, view: Tensor) -> Iterator[None]:
        """Let the enclosed work on a view run beside what follows, until `_join`."""
        if not (self.overlap_tokenizer and view.is_cuda):
            yield
            return
        stream = _side_stream(view.device)
        stream.wait_stream(torch.cuda.current_stream())
        view.record_stream(stream)  # the view's memory may not be used again before it is done
        with torch.cuda.stream(stream):
            yield

    def _join(self, result: Tensor) -> None:
        if self.overlap_tokenizer and result.is_cuda:
            current = torch.cuda.current_stream()
            current.wait_stream(_side_stream(result.device))
            result.record_stream(current)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
