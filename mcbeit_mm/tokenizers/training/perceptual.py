"""LPIPS perceptual distance (Zhang et al., CVPR 2018)."""

import os
import re
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...weights.reading import read_checkpoint, state_dict_of

MIN_SIZE = 16  # px: four poolings
SOURCES = {
    # VGG16_Weights.IMAGENET1K_V1, which LPIPS v0.1 was fitted on
    'vgg_weights': (
        'https://download.pytorch.org/models/vgg16-397923af.pth, also in '
        '~/.cache/torch/hub/checkpoints if torchvision has used it before'
    ),
    'lpips_weights': 'weights/v0.1/vgg.pth of richzhang/PerceptualSimilarity',
}


@MODELS.register_module()
class PerceptualLoss(nn.Module):
    """LPIPS v0.1 on VGG16 (torchmetrics' network), frozen, in fp32.

    Nothing is downloaded. The weights stay out of the state dict; both files are read at every
    start. Either may be pinned as `PATH#sha256=HEX`.

    Args:
        vgg_weights: torchvision's vgg16-397923af.pth; the classifier is ignored.
        lpips_weights: weights/v0.1/vgg.pth of LPIPS (taming's vgg.pth is the same). None uses the
            copy that torchmetrics ships (BSD 2-clause license).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file holds other weights or does not match its pin.
    """

    def __init__(
        self, vgg_weights: str | os.PathLike, lpips_weights: str | os.PathLike | None = None
    ):
        super().__init__()
        from torchmetrics.functional.image import lpips  # slow to import

        if lpips_weights is None:
            lpips_weights = Path(lpips.__file__).parent / 'lpips_models' / 'vgg.pth'
        with torch.device('meta'):  # no random weights; pnet_rand keeps torchvision offline
            self.lpips = lpips._NoTrainLpips(
                pretrained=False, net='vgg', pnet_rand=True, use_dropout=False
            )
        self._load('vgg_weights', vgg_weights, 'features.')
        self._load('lpips_weights', lpips_weights, 'lin')

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,), fp32, of images (B, 3, H, W) in [-1, 1]; gradients reach both.

        Raises:
            ValueError: shapes differ, or sides are below 16 px.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'PerceptualLoss compares images (B, 3, H, W) of {MIN_SIZE} px or more, got '
                f'{tuple(a.shape)} and {tuple(b.shape)}'
            )
        with torch.autocast(a.device.type, enabled=False):
            return self.lpips(a.float(), b.float()).flatten()

    def _load(self, argument: str, file: str | os.PathLike, prefix: str) -> None:
        """Replace parameters by tensors of a file, as buffers that move along but are not saved."""
        source = SOURCES[argument]
        try:
            state = state_dict_of(read_checkpoint(file))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{argument}: {error}. Nothing is downloaded; get {source}'
            ) from None
        state = {_plain(name): tensor.float() for name, tensor in state.items()}
        for path, parameter in list(self.lpips.named_parameters()):
            name, shape = _plain(path), tuple(parameter.shape)
            if not name.startswith(prefix):
                continue
            got = tuple(state[name].shape) if name in state else None
            if got != shape:
                what = f'no {name}' if got is None else f'{name} of shape {got}'
                raise ValueError(f'{file} has {what}, expected shape {shape}: get {source}')
            module, _, kind = path.rpartition('.')
            delattr(self.lpips.get_submodule(module), kind)
            self.lpips.get_submodule(module).register_buffer(kind, state[name], persistent=False)


def _plain(name: str) -> str:
    """Return a tensor's name as in torchvision, features.N.*, or LPIPS without nesting, linN.*."""
    name = re.sub(r'^net\.slice\d\.', 'features.', name)
    return re.sub(r'^(lin\d)\.model\.[01]\.', r'\1.', name)  # 1 behind a dropout, else 0
