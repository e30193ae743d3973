"""VQ-KD, the tokenizer of BEiT v2: a vision transformer and a codebook on the unit sphere."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from mmpretrain.models.selfsup import VQKD
from torch import Tensor

from ..weights.names import DIALECTS, to_official
from .base import Tokenizer
from .release import find_weights

COUNTERS = ('quantize.cluster_size', 'quantize.embedding.initted')  # optional, used in training


@MODELS.register_module()
class VQKDTokenizer(Tokenizer):
    """Frozen VQ-KD encoder (BEiT v2, arXiv 2208.06366), mmpretrain's ``VQKD``, with soft logits.

    The logits are cosines, so tau must be small: 0.05 to 0.1 (our choice). With 8192 random
    directions of 32 dims, the entropy of the targets is 9.01 nats at the authors' tau = 4
    (uniform: 9.01), 7.6 at 0.1, 6.5 at 0.07 and 4.9 at 0.05. Position embeddings are resized
    bicubically for grids other than that of ``img_size``.

    Args:
        arch: name or dict as for mmpretrain's ``BEiTViT``.
        checkpoint: file of microsoft/unilm beit2 or of OpenMMLab. See
            :meth:`~.base.Tokenizer.load`.
    """

    weight_names = ('vqkd_encoder.pth',)
    hint = (
        'expected the file of microsoft/unilm beit2 (vqkd_encoder_base_decoder_3x768x12_clip) or '
        'of OpenMMLab (vqkd_encoder.pth)'
    )

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        n_embed: int = 8192,
        embed_dim: int = 32,
        checkpoint: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.vocab_size, self.stride = n_embed, patch_size
        encoder = dict(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            final_norm=True,
            out_type='featmap',
            use_abs_pos_emb=True,
            use_rel_pos_bias=False,
            layer_scale_init_value=0.0,
        )  # as in microsoft/unilm beit2 modeling_vqkd.py and mmpretrain's beitv2
        self.vqkd = VQKD(encoder, None, n_embed, embed_dim, quantize_kmeans_init=False)
        self.load(checkpoint)

    @classmethod
    def geometry(
        cls,
        n_embed: int = 8192,
        patch_size: int = 16,
        checkpoint: str | os.PathLike | None = None,
        **others: Any,
    ) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments; looks for the weights only."""
        find_weights(checkpoint, cls.weight_names, cls.hint)
        return {'vocab_size': n_embed, 'stride': patch_size}

    @property
    def codebook(self) -> Tensor:
        """Codes (V, D) of unit length."""
        return self.vqkd.quantize.embedding.weight

    def encode(self, x: Tensor) -> Tensor:
        """Return cosines (B, V, H/stride, W/stride) for images (B, 3, H, W) in [-1, 1]."""
        feats = self.vqkd.encoder(x)[0].permute(0, 2, 3, 1)
        directions = F.normalize(self.vqkd.encode_task_layer(feats), dim=-1)
        return (directions @ self.codebook.T).permute(0, 3, 1, 2)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Raise ValueError: VQ-KD does not decode to pixels."""
        raise ValueError(
            'VQ-KD cannot decode: it reconstructs CLIP or DINO features, not pixels. For '
            'reconstructions use a VQGAN, DALL-E or discrete VAE tokenizer'
        )

    def read_weights(self, file: Path) -> dict[str, Tensor]:
        """Return the tensors of a public file under the names of mmpretrain's class."""
        weights, own = _to_mmpretrain(super().read_weights(file)), self.vqkd.state_dict()
        weights = {name: own[name] for name in COUNTERS} | weights
        codes = weights.get('quantize.embedding.weight', self.codebook)
        low, high = codes.float().norm(dim=1).aminmax()
        if codes is not self.codebook and not 0.99 < low <= high < 1.01:  # NaN is neither
            raise ValueError(
                f'{file}: codes have lengths from {low:.3g} to {high:.3g}, expected 1, as '
                'in a trained VQ-KD'
            )
        return {f'vqkd.{name}': tensor for name, tensor in weights.items()}


def _to_mmpretrain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the encoder's weights to mmpretrain's; all others have the same names."""
    part = 'encoder.'
    encoder = {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
    out = {k: v for k, v in weights.items() if not k.startswith(part)}
    for name, tensor in to_official(encoder).backbone.items():
        # fc_norm of the official encoder, applied to each patch, is mmpretrain's final norm.
        name = DIALECTS['mmpretrain'].rename(name.replace('fc_norm', 'norm'), to_official=False)
        out[part + name] = tensor
    return out
