"""Classifier whose backbone stays as it was loaded, to measure what it has learnt."""

from mmengine.registry import MODELS
from mmpretrain.models import ImageClassifier


@MODELS.register_module()
class LinearProbe(ImageClassifier):
    """Image classifier that trains its head alone.

    The backbone needs no gradients, is in no optimizer group of `ViTLayerDecayConstructor` and
    stays in evaluation mode (no drop path).
    """

    def __init__(self, backbone: dict, **kwargs):
        super().__init__(backbone, **kwargs)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> 'LinearProbe':
        """Switch everything but the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self
