"""Train a generator and its discriminator by one loss, one backward pass and one optimizer."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .discriminator import adaptive_weight, hinge_loss


def adversarial_loss(
    discriminator: nn.Module,
    images: Tensor,
    real: Tensor,
    rec: Tensor,
    last_layer: Tensor,
    disc_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the generator's and the discriminator's loss, as taming's, and values to log.

    The generator's loss sees the discriminator's parameters detached, and the discriminator's
    sees the images detached: the gradients are those of two optimizers, each with its own loss.

    Args:
        images: (B, 3, H, W) in [-1, 1] from the decoder.
        real: images of the same shape without gradient.
        rec: reconstruction loss, whose gradient norm at `last_layer` scales the generator's loss.
        disc_weight: factor on top of it.
    """
    # BatchNorm statistics count what the discriminator learns from, not the generator's pass,
    # which therefore gets copies to write to.
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    frozen |= {name: b.clone() for name, b in discriminator.named_buffers()}
    gan = -functional_call(discriminator, frozen, (images.float(),)).float().mean()
    weight = rec.new_tensor(disc_weight)
    if torch.is_grad_enabled():
        # These gradients are taken before the scaler of mixed precision acts: in fp16, those of a
        # mean over all pixels would underflow. The factor leaves a margin of 2**5 to overflow.
        scale = 2**10 if images.dtype == torch.float16 else 1
        weight = weight * adaptive_weight(scale * rec, scale * gan, last_layer)
    real_logits = discriminator(real).float()
    fake_logits = discriminator(images.detach().float()).float()
    hinge = hinge_loss(real_logits, fake_logits)
    logs = dict(gan=gan, gan_weight=weight, disc=hinge)
    logs |= dict(disc_real=real_logits.mean(), disc_fake=fake_logits.mean())
    return weight * gan + hinge, {name: value.detach() for name, value in logs.items()}
