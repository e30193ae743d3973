"""MCBEiT: tokenizer, backbone and head wired as an mmpretrain self-supervised algorithm."""

from collections.abc import Callable

import torch
from mmengine.registry import MODELS
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from .config_checks.grids import check_tokens, check_vocab
from .timer import DeviceTimer
from .tokenizers.base import Tokenizer


@MODELS.register_module()
class MCBEiT(BaseSelfSupervisor):
    """Masked image modelling with multi-choice discretization (mc-BEiT, arXiv 2203.15371).

    `inputs` is [student view (B, 3, H, W) normalised, tokenizer view (B, 3, h*s, w*s) in [0, 1]]
    for a patch grid (h, w) and a tokenizer of stride s; each data sample holds a `mask` (h, w),
    True = masked. The tokenizer (`target_generator`) follows the model's device but is no
    submodule: it stays out of the state dict, the optimizer and DistributedDataParallel. With
    `vocab_size=None` the head takes the tokenizer's.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        target_generator: dict | Tokenizer,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        # First, so that a missing tokenizer is found before a large backbone is initialised.
        if not isinstance(target_generator, Tokenizer):
            target_generator = MODELS.build(target_generator)
        vocab_size = target_generator.vocab_size
        if isinstance(head, dict) and head.get('vocab_size', vocab_size) is None:
            head = dict(head, vocab_size=vocab_size)
        super().__init__(
            backbone=backbone,
            head=head,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        del self.target_generator  # the base class registers the slot as a (None) attribute
        check_vocab(self.head.vocab_size, vocab_size)
        self._tokenizer = [target_generator]  # a list hides it from nn.Module
        self.tokenizer_timer = DeviceTimer()

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
        check_tokens(tokenizer_view.shape[2:], self.tokenizer.stride, mask.shape[1:])
        mask = mask.flatten(1).to(student_view.device)
        with self.tokenizer_timer.measure(student_view.device):
            token_logits = self.tokenizer(tokenizer_view)
        feats = self.backbone(student_view, mask)[-1][:, 1:]
        return self.head.loss(feats, token_logits, mask)
