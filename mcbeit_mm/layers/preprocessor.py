"""Move both views to the device as 8-bit integers and normalize them there."""

from typing import Any

from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from mmpretrain.models.utils import TwoNormDataPreprocessor


@MODELS.register_module()
class TwoViewDataPreprocessor(TwoNormDataPreprocessor):
    """mmpretrain's two-view preprocessor that keeps data samples on the CPU.

    Their masks then move in one copy per batch, not per image, and the loss finds the masked
    patches without a host-device sync.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Move and normalize both views; cached records in place of the second are only moved."""
        student, second = data['inputs']
        if second.ndim == 4:
            return super().forward(data, training)
        stand_in = student[:, :, :1, :1]  # the base class needs two images
        result = super().forward(dict(data, inputs=[student, stand_in]), training)
        result['inputs'][1] = self.cast_data(second)
        return result

    def cast_data(self, data: Any) -> Any:
        """Move tensors, but not data samples, to the device."""
        return data if isinstance(data, BaseDataElement) else super().cast_data(data)
