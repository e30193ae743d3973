"""LPIPS, the distance between images in VGG features (Zhang et al., CVPR 2018)."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...fileio.pins import split_pin
from ...weights.reading import read_checkpoint, state_dict_of

# (layer of torchvision's vgg16.features, channels) of the convolutions between two poolings;
# LPIPS compares the last one of each stage: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
# Mean and standard deviation of ImageNet for images in [-1, 1], as rounded by LPIPS.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
MIN_SIZE = 16  # px: four poolings
VGG_FILE = 'vgg16-397923af.pth'  # VGG16_Weights.IMAGENET1K_V1, which LPIPS v0.1 was fitted on
LIN_FILE = 'functional/image/lpips_models/vgg.pth'  # inside torchmetrics


@MODELS.register_module()
class PerceptualLoss(nn.Module):
    """LPIPS v0.1 on VGG16 (richzhang/PerceptualSimilarity; taming's LPIPS), frozen, in fp32.

    Nothing is downloaded, and nothing enters the state dict: each start reads both files.

    Args:
        vgg_weights: torchvision's vgg16-397923af.pth; its classifier is not used.
        lpips_weights: LPIPS' weights/v0.1/vgg.pth (taming's vgg.pth is the same). None takes the
            copy in the installed torchmetrics, functional/image/lpips_models/vgg.pth, which is
            the LPIPS authors' under the BSD 2-clause licence.

    Either may be pinned, `PATH#sha256=HEX`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it holds other weights, or is not the pinned file.
    """

    def __init__(
        self,
        vgg_weights: str | os.PathLike,
        lpips_weights: str | os.PathLike | None = None,
    ):
        super().__init__()
        for name, tensor in _read_vgg(vgg_weights).items():
            self._keep(name, tensor)
        for name, tensor in _read_lins(lpips_weights).items():
            self._keep(name, tensor)
        self._keep('shift', torch.tensor(SHIFT).view(1, 3, 1, 1))
        self._keep('scale', torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,), fp32, of images (B, 3, H, W) in [-1, 1]; gradients reach both.

        Raises:
            ValueError: other shapes, or sides below 16 px.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'PerceptualLoss compares images (B, 3, H, W) of {MIN_SIZE} px or more, got '
                f'{tuple(a.shape)} and {tuple(b.shape)}'
            )
        with torch.autocast(a.device.type, enabled=False):
            pairs = zip(self._features(a), self._features(b), strict=True)
            distances = [
                F.conv2d((x - y).square(), self._buffers[f'lin{stage}']).mean(dim=(1, 2, 3))
                for stage, (x, y) in enumerate(pairs)
            ]
        return torch.stack(distances).sum(dim=0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) at the end of each stage, unit vectors along C."""
        x, features = (images.float() - self.shift) / self.scale, []
        for number, stage in enumerate(STAGES):
            x = F.max_pool2d(x, 2) if number else x
            for layer, _ in stage:
                weight, bias = self._buffers[f'weight{layer}'], self._buffers[f'bias{layer}']
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            features.append(x / (norm + 1e-10))  # epsilon of LPIPS: x may be 0 in all channels
        return features

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.float(), persistent=False)


def _read_vgg(file: str | os.PathLike) -> dict[str, Tensor]:
    if not Path(split_pin(file)[0]).is_file():
        raise FileNotFoundError(
            f'vgg_weights: no file {file} (from {Path.cwd()}); nothing is downloaded here: get '
            f'{VGG_FILE} from https://download.pytorch.org/models/{VGG_FILE}, where torchvision '
            'takes it from, or from ~/.cache/torch/hub/checkpoints if torchvision has it already'
        )
    state, tensors, channels = state_dict_of(read_checkpoint(file)), {}, 3
    for layer, width in (conv for stage in STAGES for conv in stage):
        for kind, shape in (('weight', (width, channels, 3, 3)), ('bias', (width,))):
            name = f'features.{layer}.{kind}'
            _check(file, state, name, shape, f"torchvision's {VGG_FILE}")
            tensors[f'{kind}{layer}'] = state[name]
        channels = width
    unused = len(state) - len(tensors)
    print_log(f'{file}: read {len(tensors)} tensors of VGG16, left {unused} unused', 'current')
    return tensors


def _read_lins(file: str | os.PathLike | None) -> dict[str, Tensor]:
    """The weights (1, C, 1, 1) of each stage's channels, as lin0 to lin4."""
    if file is None:
        torchmetrics = find_spec('torchmetrics')
        folder = Path(torchmetrics.origin).parent if torchmetrics else Path('torchmetrics')
        file = folder / LIN_FILE
    if not Path(split_pin(file)[0]).is_file():
        raise FileNotFoundError(
            f'lpips_weights: no file {file} (from {Path.cwd()}); nothing is downloaded here: pip '
            'install torchmetrics, which brings it, or give weights/v0.1/vgg.pth of '
            'richzhang/PerceptualSimilarity'
        )
    # model.0 where the layer was saved without the dropout before it.
    state = {
        re.sub(r'\.model\.[01]\.', '.', name): tensor
        for name, tensor in state_dict_of(read_checkpoint(file)).items()
    }
    for number, stage in enumerate(STAGES):
        shape = (1, stage[-1][1], 1, 1)
        _check(file, state, f'lin{number}.weight', shape, "LPIPS' weights/v0.1/vgg.pth")
    return {f'lin{number}': state[f'lin{number}.weight'] for number in range(len(STAGES))}


def _check(
    file: str | os.PathLike,
    state: dict[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    expected: str,
) -> None:
    got = tuple(state[name].shape) if name in state else None
    if got != shape:
        what = f'no {name}' if got is None else f'{name} of shape {got}'
        raise ValueError(f'{file} has {what}, expected {shape}: give {expected}')
