"""Batches -> the device: both views as 8-bit integers in one copy each, normalised there."""

from typing import Any

from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from mmpretrain.models.utils import TwoNormDataPreprocessor


@MODELS.register_module()
class TwoViewDataPreprocessor(TwoNormDataPreprocessor):
    """mmpretrain's preprocessor of two views, with the data samples left on the CPU.

    Their masks then travel as one tensor, not in a copy per image, and the loss finds the masked
    patches without waiting for the device.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise both views; cached records (B, bytes) in place of the second stay bytes."""
        student, second = data['inputs']
        if second.ndim == 4:
            return super().forward(data, training)
        stand_in = student[:, :, :1, :1]  # the base class takes two images
        result = super().forward(dict(data, inputs=[student, stand_in]), training)
        result['inputs'][1] = self.cast_data(second)
        return result

    def cast_data(self, data: Any) -> Any:
        """Move tensors, but not data samples, to the device."""
        return data if isinstance(data, BaseDataElement) else super().cast_data(data)
