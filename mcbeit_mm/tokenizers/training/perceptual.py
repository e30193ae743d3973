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
        self,
        vgg_weights: str | os.PathLike,
        lpips_weights: str | os.PathLike | None = None,
    ):
        super().__init__()
        from torchmetrics.functional.image import lpips  # slow to import

        if lpips_weights is None:
            lpips_weights = Path(lpips.__file__).parent / 'lpips_models' / 'vgg.pth'
        with torch.device('meta'):  # no random weights; pnet_rand keeps torchvision offline
            self.lpips = lpips._NoTrainLpips(
                pretrained=False, net='vgg', pnet_rand=True, use_dropout=False
            )
        shapes = {_plain(k): tuple(v.shape) for k, v in self.lpips.state_dict().items()}
        weights = _read('vgg_weights', vgg_weights, shapes, 'features.')
        weights |= _read('lpips_weights', lpips_weights, shapes, 'lin')
        for name, module in self.lpips.named_modules():
            for kind, _ in list(module.named_parameters(recurse=False)):
                delattr(module, kind)  # a buffer moves with the module but is not saved
                tensor = weights[_plain(f'{name}.{kind}')]
                module.register_buffer(kind, tensor, persistent=False)

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


def _plain(name: str) -> str:
    """Map names of torchmetrics and of the files to torchvision's features.N.* and linN.weight.

    LPIPS saves its layers as linN.model.1, or as linN.model.0 without the dropout before it.
    """
    name = re.sub(r'^net\.slice\d\.', 'features.', name)
    return re.sub(r'^lin(?:s\.)?(\d)\.model\.[01]\.', r'lin\1.', name)


def _read(
    argument: str, file: str | os.PathLike, shapes: dict[str, tuple[int, ...]], prefix: str
) -> dict[str, Tensor]:
    """Return the tensors of a file whose names start with `prefix`; check their shapes."""
    try:
        state = state_dict_of(read_checkpoint(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{argument}: {error}. Nothing is downloaded; get {SOURCES[argument]}'
        ) from None
    state = {_plain(name): tensor.float() for name, tensor in state.items()}
    expected = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    for name, shape in expected.items():
        got = tuple(state[name].shape) if name in state else None
        if got != shape:
            what = f'{name} of shape {got}' if got else f'no {name}'
            raise ValueError(f'{file} has {what}, expected shape {shape}: get {SOURCES[argument]}')
    return {name: state[name] for name in expected}
