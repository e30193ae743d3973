"""Patch features -> token logits -> multi-choice loss and metrics."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .losses import MultiChoiceLoss, patches_per_rank


@MODELS.register_module()
class MCBEiTHead(BaseModule):
    """Linear prediction of the tokenizer's codes, trained with soft multi-choice targets.

    Args:
        vocab_size: number of codes of the tokenizer.
        tau: temperature of the tokenizer's probabilities.
        omega: weight of the term refined by the student's inter-patch affinity.
        tau_affinity: temperature of the affinity's softmax.
        detach_affinity: stop the gradient through the affinity; the authors let it flow.
        fused: False trains with the plain equation, `losses.plain_sums`.
        compile_loss: fuse the loss's pointwise part by torch.compile, for CUDA.
    """

    def __init__(
        self,
        embed_dims: int = 768,
        vocab_size: int = 8192,
        tau: float = 4.0,
        omega: float = 0.2,
        tau_affinity: float = 1.0,
        detach_affinity: bool = False,
        fused: bool = True,
        compile_loss: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        self.vocab_size = vocab_size
        self.lm_head = nn.Linear(embed_dims, vocab_size)
        self.multi_choice = MultiChoiceLoss(
            tau, omega, tau_affinity, detach_affinity, fused, compile_loss
        )
        # Truncated at one sigma, as the authors do.
        nn.init.trunc_normal_(self.lm_head.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def forward(self, feats: Tensor) -> Tensor:
        """Return logits over codes (..., V) of features (..., D)."""
        return self.lm_head(feats)

    def loss(self, feats: Tensor, token_logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return loss and metrics of feats (B, L, D), logits (B, V, h, w) and mask (B, L).

        Averaged over the ranks they are means of the whole batch; logs show rank 0's values.
        """
        layer, count = self.lm_head, patches_per_rank(mask, feats.device)
        return self.multi_choice.terms(feats, layer.weight, layer.bias, token_logits, mask, count)
