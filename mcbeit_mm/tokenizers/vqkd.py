"""BEiT v2's tokenizer VQ-KD: a vision transformer and a codebook of directions."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmpretrain.models.selfsup import VQKD
from torch import Tensor

from ..fileio.pins import check_pin, split_pin
from ..weights.names import DIALECTS, to_official
from ..weights.reading import read_checkpoint, state_dict_of
from .base import Tokenizer
from .release import load_weights

SIZES = ('arch', 'img_size', 'patch_size', 'n_embed', 'embed_dim')
COUNTERS = (
    'quantize.cluster_size',
    'quantize.embedding.initted',
)  # of training; files may lack them


@MODELS.register_module()
class VQKDTokenizer(Tokenizer):
    """Frozen VQ-KD encoder (BEiT v2, arXiv 2208.06366), mmpretrain's ``VQKD``, with soft logits.

    The logits are cosines in [-1, 1], so tau must be small. For random directions of 32 dims and
    8192 codes, targets have an entropy of 9.01 nats at the authors' tau = 4 (uniform: 9.01), 7.6
    at 0.1, 6.5 at 0.07 and 4.9 at 0.05. Own advice: tau 0.05 to 0.1.

    Position embeddings are resized for grids other than that of ``img_size``, bicubically.

    Args:
        arch: size of the encoder, a name or dict as for mmpretrain's ``BEiTViT``.
        img_size: pixels the position embeddings were made for; ``n_embed``: number of codes V.
        checkpoint: file of microsoft/unilm beit2 (``vqkd_encoder_base_decoder_3x768x12_clip``) or
            of OpenMMLab (``vqkd_encoder.pth``). Without it the weights are random.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the weights do not fit these sizes, or the codes are not of length 1.
    """

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
        file = _existing(checkpoint)
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
        )  # that of the public models: microsoft/unilm beit2 modeling_vqkd.py, mmpretrain beitv2
        self.vqkd = VQKD(encoder, None, n_embed, embed_dim, quantize_kmeans_init=False)
        if file is None:
            print_log(f'{type(self).__name__}: no checkpoint, random weights', 'current')
        else:
            self._load(file)
        self.freeze(file)

    @classmethod
    def geometry(
        cls,
        patch_size: int = 16,
        n_embed: int = 8192,
        checkpoint: str | os.PathLike | None = None,
        **others: Any,
    ) -> dict[str, int]:
        """Return vocab_size and stride for constructor arguments, without reading weights."""
        _existing(checkpoint)
        return {'vocab_size': n_embed, 'stride': patch_size}

    @property
    def codebook(self) -> Tensor:
        """The codes (V, D), of length 1."""
        return self.vqkd.quantize.embedding.weight

    def encode(self, x: Tensor) -> Tensor:
        """Return the cosines (B, V, H/stride, W/stride) of images (B, 3, H, W) in [-1, 1]."""
        feats = self.vqkd.encoder(x)[0].permute(0, 2, 3, 1)
        directions = F.normalize(self.vqkd.encode_task_layer(feats), dim=-1)
        return (directions @ self.codebook.T).permute(0, 3, 1, 2)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Raise ValueError: the decoder of VQ-KD does not return to pixels."""
        raise ValueError(
            'VQ-KD cannot decode: it reconstructs features of CLIP (or DINO), not pixels. To look '
            'at reconstructions, use a VQGAN, DALL-E or discrete VAE tokenizer'
        )

    def _load(self, file: Path) -> None:
        own = self.vqkd.state_dict()
        weights = _to_mmpretrain(state_dict_of(read_checkpoint(file)))
        weights = {name: own[name] for name in COUNTERS} | weights
        load_weights(self.vqkd, weights, file, sizes=SIZES)
        low, high = self.codebook.norm(dim=1).aminmax()
        if not 0.99 < low <= high < 1.01:  # also where k-means never filled it; NaN too
            raise ValueError(
                f'{file}: the codes quantize.embedding.weight have lengths from {low:.3g} to '
                f'{high:.3g}, but those of a trained VQ-KD have length 1'
            )


def _existing(checkpoint: str | os.PathLike | None) -> Path | None:
    if checkpoint is None:
        return None
    name, pin = split_pin(checkpoint)
    if not Path(name).exists():
        raise FileNotFoundError(
            f'No VQ-KD tokenizer at {checkpoint}: expected the file of microsoft/unilm beit2 '
            '(vqkd_encoder_base_decoder_3x768x12_clip) or of OpenMMLab (vqkd_encoder.pth)'
        )
    return check_pin(Path(name), pin)


def _to_mmpretrain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the encoder mmpretrain's names; all others are the same in both codes."""
    part = 'encoder.'
    encoder = {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
    out = {k: v for k, v in weights.items() if not k.startswith(part)}
    for name, tensor in to_official(encoder).backbone.items():
        # The official encoder applies fc_norm to each patch: mmpretrain's final norm.
        name = DIALECTS['mmpretrain'].rename(name.replace('fc_norm', 'norm'), to_official=False)
        out[part + name] = tensor
    return out
