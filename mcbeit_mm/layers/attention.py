"""Queries, keys, values and a position bias -> attention, at once or in bands of queries.

The bias of n patches has n x n entries per head: 805 MB in fp32 for the 64 x 64 patches of a
detector's image and 12 heads. Bands never materialize all of it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .rel_pos import Grid

# Devices without fused attention that computes the bias's gradient.
STEP_BY_STEP = ('cpu',)
# Queries per band; 512 x 4096 scores of 12 heads are 100 MB in fp32.
BAND_QUERIES = 512


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention (B, heads, Q, d) of q (B, heads, Q, d), k, v (B, heads, N, d) with an additive bias
    (1, heads, Q, N or more), cast to q's dtype; columns beyond N are ignored.
    """
    if bias is not None:  # cuDNN misreads an fp32 bias with fp16 queries
        bias = bias.to(q.dtype)[..., : k.shape[-2]]  # slicing before the cast loses the alignment
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
    """`offset_bias` with the queries in reverse order, which takes a single copy of the table."""
    h, w = grid
    # The keys of query (y, x) have offsets (y - y', x - x'): in the table rotated by 180 degrees,
    # the h x w block that starts at (h - 1 - y, w - 1 - x).
    rotated = offsets.flip(1, 2)[:, h - bottom : 2 * h - top - 1]
    blocks = rotated.unfold(1, h, 1).unfold(2, w, 1)
    return blocks.reshape(1, len(offsets), -1, h * w)


@dataclass(frozen=True, eq=False)
class BandedBias:
    """Position bias of a patch grid (h, w), built from its table a band of queries at a time.

    `offsets` is the table (heads, 2h - 1, 2w - 1). In training the backward pass recomputes each
    band, so only one band's scores are in memory.
    """

    offsets: Tensor
    grid: Grid

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute `attend` with the full bias; arguments are (B, heads, h * w, d)."""
        height, width = self.grid
        rows = max(1, BAND_QUERIES // width)
        bands = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            inputs = q[:, :, top * width : bottom * width], k, v, self.offsets, top, bottom
            if torch.is_grad_enabled():
                band = checkpoint(  # deterministic: needs no RNG state
                    self._band, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                band = self._band(*inputs)
            bands.append(band)
        return torch.cat(bands, dim=2)

    def _band(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, top: int, bottom: int
    ) -> Tensor:
        # Flipping a query moves less memory than flipping its row of the bias.
        bias = _reversed_bias(offsets, self.grid, top, bottom)
        return attend(q.flip(2), k, v, bias).flip(2)
