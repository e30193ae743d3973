"""Queries, keys, values and a position bias -> attention, whole or in bands of queries.

A bias of n patches has n x n entries per head: 805 MB in fp32 for the 64 x 64 patches of a
detector's image and 12 heads. In bands, it never exists as a whole.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .rel_pos import Grid

# Devices where torch has no fused attention that gives the bias a gradient.
STEP_BY_STEP = ('cpu',)
# Queries per band; 512 x 4096 scores of 12 heads are 100 MB in fp32.
BAND_QUERIES = 512


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention (B, heads, Q, d) of q (B, heads, Q, d), k, v (B, heads, N, d) with an additive bias
    (1, heads, Q, N), cast to the type of q; columns beyond N are left out.
    """
    if bias is not None:  # cuDNN reads an fp32 bias beside fp16 queries wrongly
        bias = bias.to(q.dtype)[..., : k.shape[-2]]  # a cast of the cut would lose its alignment
        if q.device.type in STEP_BY_STEP and torch.is_grad_enabled():
            scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).add_(bias)
            return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def offset_bias(offsets: Tensor, grid: Grid, top: int, bottom: int) -> Tensor:
    """Bias (1, heads, rows * w, h * w) of the queries in rows top to bottom of a patch grid (h, w)
    from the table (heads, 2h - 1, 2w - 1) of their offsets.
    """
    return _reversed_bias(offsets, grid, top, bottom).flip(2)


def _reversed_bias(offsets: Tensor, grid: Grid, top: int, bottom: int) -> Tensor:
    """`offset_bias` of the queries in reverse order: one copy out of the table."""
    h, w = grid
    # The keys of query (y, x) have the offsets (y - y', x - x'): with the table turned by
    # 180 degrees they are its h x w cut that starts at (h - 1 - y, w - 1 - x).
    turned = offsets.flip(1, 2)[:, h - bottom : 2 * h - top - 1]
    cuts = turned.unfold(1, h, 1).unfold(2, w, 1)
    return cuts.reshape(1, len(offsets), -1, h * w)


@dataclass(frozen=True, eq=False)
class BandedBias:
    """Position bias of a patch grid, cut out of its table of offsets a band of queries at a time.

    `offsets` is (heads, 2h - 1, 2w - 1). In training each band is computed again in the backward
    pass, so that the scores of one band are all that ever exist.
    """

    offsets: Tensor
    grid: Grid

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Like `attend` with the whole bias; (B, heads, h * w, d) each."""
        height, width = self.grid
        rows = max(1, BAND_QUERIES // width)
        bands = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            inputs = q[:, :, top * width : bottom * width], k, v, self.offsets, top, bottom
            if torch.is_grad_enabled():
                # No randomness to repeat within.
                band = checkpoint(
                    self._band, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                band = self._band(*inputs)
            bands.append(band)
        return torch.cat(bands, dim=2)

    def _band(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, top: int, bottom: int
    ) -> Tensor:
        # A query has fewer numbers to turn round than its row of the bias.
        bias = _reversed_bias(offsets, self.grid, top, bottom)
        return attend(q.flip(2), k, v, bias).flip(2)
