"""PatchGAN discriminator and its losses, as in CompVis/taming-transformers."""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.func import functional_call


@MODELS.register_module()
class PatchDiscriminator(nn.Module):
    """Real-vs-reconstructed logits of overlapping patches (taming's NLayerDiscriminator).

    4x4 convolutions: `num_layers` with stride 2, then two with stride 1. Loads taming's weights
    (`main.N.*`).

    Args:
        ndf: channels of the first convolution; they double up to 8 * ndf.
        num_layers: at least 1; 3 classifies 70-px patches.
    """

    def __init__(self, ndf: int = 64, num_layers: int = 3):
        super().__init__()
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
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1, h, w), positive for real, of images (B, 3, H, W) in [-1, 1].

        H and W are at least 3 * 2**num_layers pixels.
        """
        return self.main(x)


def _init_weights(module: nn.Module) -> None:
    """Initialize as taming does: convolutions N(0, 0.02), norm weights N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator: half the means of relu(1 - real) and relu(1 + fake)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adaptive_weight(rec_loss: Tensor, gan_loss: Tensor, weight: Tensor) -> Tensor:
    """Weight that scales the adversarial gradient to the norm of the reconstruction gradient.

    |d rec_loss / d weight| / (|d gan_loss / d weight| + 1e-4), at most 1e4 (constants of taming),
    for the `weight` of the decoder's last layer. Both graphs are retained.
    """
    rec, gan = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0].float().norm()
        for loss in (rec_loss, gan_loss)
    )
    return (rec / (gan + 1e-4)).clamp(max=1e4).detach()


def adversarial_loss(
    discriminator: nn.Module,
    images: Tensor,
    real: Tensor,
    rec: Tensor,
    last_layer: Tensor,
    disc_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of generator and discriminator loss, and values to log.

    The generator loss sees detached discriminator parameters and the discriminator loss sees
    detached images, so one backward pass gives the gradients of two separate optimizers.

    Args:
        images: decoder output (B, 3, H, W) in [-1, 1].
        real: images of the same shape, without gradient.
        rec: reconstruction loss, see :func:`adaptive_weight`.
        last_layer: weight of the decoder's last layer.
        disc_weight: additional factor of the generator loss.
    """
    # The generator's pass updates copies of the buffers: BatchNorm statistics must only count
    # what the discriminator is trained on.
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    frozen |= {name: b.clone() for name, b in discriminator.named_buffers()}
    gan = -functional_call(discriminator, frozen, (images.float(),)).float().mean()
    # Taken before the gradient scaler acts: unscaled fp16 gradients of a mean over all pixels
    # underflow. 2**10 leaves a factor of 2**5 before overflow.
    scale = 2**10 if images.dtype == torch.float16 else 1
    weight = disc_weight * adaptive_weight(scale * rec, scale * gan, last_layer)
    real_logits = discriminator(real).float()
    fake_logits = discriminator(images.detach().float()).float()
    hinge = hinge_loss(real_logits, fake_logits)
    logs = dict(gan=gan, gan_weight=weight, disc=hinge)
    logs |= dict(disc_real=real_logits.mean(), disc_fake=fake_logits.mean())
    return weight * gan + hinge, {name: value.detach() for name, value in logs.items()}
