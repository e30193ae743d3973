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

    def cast_data(self, data: Any) -> Any:
        """Move tensors, but not data samples, to the device."""
        return data if isinstance(data, BaseDataElement) else super().cast_data(data)
