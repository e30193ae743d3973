"""mmdet's RPN head and RoI extractor with coordinates in float32 under mixed precision.

mmdet computes anchors and regions in the features' dtype: bfloat16 rounds a coordinate near 1000
to 4 pixels, and mmcv's compiled RoIAlign does not support it. Detectron2, which the authors used,
keeps both in float32. Needs mmdet, so no other module of the package imports this one.
"""

from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """RPNHead that follows autocast but returns float32, which makes its anchors float32."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, A, H, W) and box deltas (B, 4 A, H, W) of a level (B, C, H, W)."""
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """SingleRoIExtractor with regions, features and output in float32."""

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Pool features (N, C, size, size) of regions (N, 5): batch index, x1, y1, x2, y2."""
        return super().forward(tuple(x.float() for x in feats), rois.float(), roi_scale_factor)
