"""mmdet's RPN head and RoI extractor with coordinates in float32 under mixed precision.

mmdet takes the type of the features for anchors and regions: bfloat16 rounds a coordinate near 1000
to 4 pixels, and mmcv's compiled RoIAlign refuses it. Detectron2, which the authors used, keeps
anchors and proposals in float32. Needs mmdet, so nothing else of the package imports this module.
"""

from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RPNHead(RPNHead):
    """RPNHead that computes as autocast says and returns float32, so its anchors are float32."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, A, H, W) and box deltas (B, 4 A, H, W) of one level (B, C, H, W)."""
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """SingleRoIExtractor whose regions, features and result are float32."""

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Features (N, C, size, size) of regions (N, 5) as batch index, x1, y1, x2, y2."""
        return super().forward(tuple(x.float() for x in feats), rois.float(), roi_scale_factor)
