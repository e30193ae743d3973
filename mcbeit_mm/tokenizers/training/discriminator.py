"""PatchGAN discriminator and its losses, as in CompVis/taming-transformers."""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class PatchDiscriminator(nn.Module):
    """Real-or-reconstructed logits of overlapping patches (NLayerDiscriminator of taming).

    4x4 convolutions of padding 1: `num_layers` with stride 2, two with stride 1. Weights of
    taming's checkpoints (`main.N.*`) load.

    Args:
        ndf: channels of the first convolution; they double up to 8 * ndf.
        num_layers: 1 or more; 3 gives logits of 70-px patches.
    """

    def __init__(self, ndf: int = 64, num_layers: int = 3):
        super().__init__()
        if num_layers < 1 or ndf < 1:
            raise ValueError(f'need ndf >= 1 and num_layers >= 1, got {ndf=} {num_layers=}')
        widths = [ndf * min(2**n, 8) for n in range(num_layers + 1)]
        layers = [nn.Conv2d(3, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for n in range(1, num_layers + 1):
            stride = 2 if n < num_layers else 1
            layers += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[n]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.min_size = 3 * 2**num_layers  # smaller images leave the last convolution nothing
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1, h, w), positive for real, of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: H or W below 3 * 2**num_layers pixels.
        """
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'PatchDiscriminator needs images of {self.min_size} px or more, got '
                f'{tuple(x.shape)}: lower its num_layers'
            )
        return self.main(x)


def _init_weights(module: nn.Module) -> None:
    """N(0, 0.02) convolutions, N(1, 0.02) norm weights: taming's weights_init."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's loss: mean of relu(1 - real) and relu(1 + fake), each averaged; scalar."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adaptive_weight(rec_loss: Tensor, gan_loss: Tensor, weight: Tensor) -> Tensor:
    """Factor that gives the adversarial loss the gradient norm of the reconstruction loss.

    |d rec_loss / d weight| / (|d gan_loss / d weight| + 1e-4), at most 1e4 (both numbers as in
    taming), where `weight` is that of the decoder's last layer. Scalar without gradient; the
    graphs of both losses are kept.
    """
    rec, gan = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0].float().norm()
        for loss in (rec_loss, gan_loss)
    )
    return (rec / (gan + 1e-4)).clamp(max=1e4).detach()
