"""The model inside the wrappers of distributed training."""

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel or another of MMEngine's wrappers."""
    return model.module if is_model_wrapper(model) else model
