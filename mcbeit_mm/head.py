"""Patch features -> token logits -> multi-choice loss and metrics."""

from functools import partial

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .losses import MultiChoiceLoss, multi_choice_terms, patches_per_rank


@MODELS.register_module()
class MCBEiTHead(BaseModule):
    """Linear prediction of the tokenizer's codes, trained with soft multi-choice targets.

    Args:
        vocab_size: number of codes, that of the tokenizer.
        tau: temperature of the tokenizer's probabilities.
        omega: weight of the term refined by the student's inter-patch affinity.
        tau_affinity: temperature of the affinity's softmax.
        detach_affinity: stop the gradient through the affinity (the authors let it flow).
        compile_loss: fuse the loss' pointwise part by torch.compile, for CUDA.
    """

    def __init__(
        self,
        embed_dims: int = 768,
        vocab_size: int = 8192,
        tau: float = 4.0,
        omega: float = 0.2,
        tau_affinity: float = 1.0,
        detach_affinity: bool = False,
        compile_loss: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        self.vocab_size, self.compile_loss = vocab_size, compile_loss
        self.lm_head = nn.Linear(embed_dims, vocab_size)
        self.multi_choice = MultiChoiceLoss(tau, omega, tau_affinity, detach_affinity)
        init = partial(
            nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02
        )  # one sigma, as the authors
        init(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)

    def forward(self, feats: Tensor) -> Tensor:
        """Logits over codes, (..., V), of features (..., D)."""
        return self.lm_head(feats)

    def loss(self, feats: Tensor, token_logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Loss and metrics, see losses.py: feats (B, L, D), logits (B, V, h, w), mask (B, L).

        The mean of each value over the ranks is that of the whole batch; a log shows rank 0's.
        """
        return multi_choice_terms(
            feats,
            self.lm_head.weight,
            self.lm_head.bias,
            token_logits,
            mask,
            patches_per_rank(mask, feats.device),
            compiled=self.compile_loss,
            **self.multi_choice.settings,
        )
