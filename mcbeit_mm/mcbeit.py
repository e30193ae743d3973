"""MCBEiT: tokenizer, backbone and head combined as an mmpretrain self-supervised algorithm."""

from collections.abc import Callable

import torch
from mmengine.registry import MODELS
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from .layers.blocks import check_choice
from .tokenizers.base import PRECISIONS, Tokenizer, check_vocab


@MODELS.register_module()
class MCBEiT(BaseSelfSupervisor):
    """Masked image modeling with multi-choice discretization (mc-BEiT, arXiv 2203.15371).

    `inputs` is [student view (B, 3, H, W) normalized, tokenizer view (B, 3, h*s, w*s) in [0, 1]]
    for a patch grid (h, w) and a tokenizer of stride s; cached records may replace the second view.
    Each data sample holds a `mask` (h, w), True = masked. The tokenizer (`target_generator`) moves
    with the model but is not a submodule: it stays out of the state dict, the optimizer and
    DistributedDataParallel. With `vocab_size=None` the head takes the tokenizer's.

    Args:
        tokenizer_precision: 'fp32', 'bf16' or 'fp16'; docs/benchmark.md shows the effect.
        compile_tokenizer: compile the tokenizer with torch.compile.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        target_generator: dict | Tokenizer,
        data_preprocessor: dict | None = None,
        tokenizer_precision: str = 'fp32',
        compile_tokenizer: bool = False,
        init_cfg: dict | None = None,
    ):
        # First, to report a missing tokenizer before a large backbone is initialized.
        if not isinstance(target_generator, Tokenizer):
            target_generator = MODELS.build(target_generator)
        vocab_size = target_generator.vocab_size
        if isinstance(head, dict) and head.get('vocab_size', vocab_size) is None:
            head = dict(head, vocab_size=vocab_size)
        check_choice('tokenizer_precision', tokenizer_precision, PRECISIONS)
        target_generator.precision = tokenizer_precision
        target_generator.compiled = compile_tokenizer
        super().__init__(
            backbone=backbone, head=head, data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        del self.target_generator  # the base class registers the slot as a (None) attribute
        check_vocab(self.head.vocab_size, vocab_size)
        self._tokenizer = [target_generator]  # a list hides it from nn.Module

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
        """Tokenize the second view, encode the masked first view, predict the masked patches."""
        student_view, tokenizer_view = inputs
        mask = torch.stack([sample.mask for sample in data_samples]).bool()
        self.tokenizer.check_view(tokenizer_view, mask.shape[1:], self.head.multi_choice.tau)
        mask = mask.flatten(1)
        token_logits = self.tokenizer(tokenizer_view)
        mask_on_device = mask.to(student_view.device, non_blocking=True)
        feats = self.backbone(student_view, mask_on_device)[-1][:, 1:]
        return self.head.loss(feats, token_logits, mask)
