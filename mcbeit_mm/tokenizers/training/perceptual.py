"""LPIPS perceptual distance (Zhang et al., CVPR 2018)."""

import os
import re
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...fileio.pins import split_pin
from ...weights.reading import read_checkpoint, state_dict_of

VGG = 'https://download.pytorch.org/models/vgg16-397923af.pth'


@MODELS.register_module()
class PerceptualLoss(nn.Module):
    """LPIPS v0.1 on VGG16 (torchmetrics' network, with its copy of the LPIPS weights), in fp32.

    Frozen. Nothing is downloaded. The weights are not in the state dict: the file is read at every
    start.

    Args:
        vgg_weights: torchvision's VGG16_Weights.IMAGENET1K_V1, pinned or not; the classifier is
            ignored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds other weights or does not match its pin.
    """

    def __init__(self, vgg_weights: str | os.PathLike):
        super().__init__()
        if not Path(split_pin(vgg_weights)[0]).exists():
            raise FileNotFoundError(
                f'no file {vgg_weights}: download {VGG} yourself, nothing is downloaded here'
            )
        from torchmetrics.functional.image import lpips  # slow to import

        with torch.device('meta'):  # no random weights; pnet_rand keeps torchvision offline
            self.lpips = lpips._NoTrainLpips(
                pretrained=False, net='vgg', pnet_rand=True, use_dropout=False
            )
        shipped = Path(lpips.__file__).parent / 'lpips_models' / 'vgg.pth'
        state = state_dict_of(read_checkpoint(vgg_weights))
        state |= state_dict_of(read_checkpoint(shipped))
        self._to_buffers(
            {_flat_name(name): tensor.float() for name, tensor in state.items()}, vgg_weights
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,), fp32, of images (B, 3, H, W) in [-1, 1]; gradients reach both.

        H and W are at least 16 pixels, for four poolings.
        """
        with torch.autocast(a.device.type, enabled=False):
            return self.lpips(a.float(), b.float()).flatten()

    def _to_buffers(self, state: dict[str, Tensor], file: str | os.PathLike) -> None:
        """Replace the parameters with buffers, which move with the module but are not saved."""
        for path, parameter in list(self.lpips.named_parameters()):
            name = _flat_name(path)
            if name not in state or state[name].shape != parameter.shape:
                raise ValueError(
                    f'{file} has no {name} of shape {tuple(parameter.shape)}: get {VGG}'
                )
            module, _, kind = path.rpartition('.')
            delattr(self.lpips.get_submodule(module), kind)
            self.lpips.get_submodule(module).register_buffer(kind, state[name], persistent=False)


def _flat_name(name: str) -> str:
    """Return a tensor's name in torchvision (features.N.*) or, flattened, in LPIPS (linN.*)."""
    name = re.sub(r'^net\.slice\d\.', 'features.', name)
    return re.sub(r'^(lin\d)\.model\.[01]\.', r'\1.', name)  # 1 after a dropout, else 0
