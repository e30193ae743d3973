"""Classifier with a frozen backbone, to measure its features."""

from mmengine.registry import MODELS
from mmpretrain.models import ImageClassifier


@MODELS.register_module()
class LinearProbe(ImageClassifier):
    """Image classifier that trains only its head.

    The backbone has no gradients, is in no optimizer group of `ViTLayerDecayConstructor` and stays
    in eval mode (no drop path).
    """

    def __init__(self, backbone: dict, **kwargs):
        super().__init__(backbone, **kwargs)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> 'LinearProbe':
        """Switch the mode of everything but the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self
