"""Train a Gumbel VQGAN: straight-through Gumbel-softmax and a small KL to the uniform prior."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import broadcast
from mmengine.registry import MODELS
from torch import Tensor

from ...layers.blocks import check_choice
from ..base import embed_tokens
from ..vqgan import GumbelVQGAN
from .codebook import scale_for_entropy
from .trainer import Quantized, VQGANTrainer

START_ENTROPY = 0.5  # of softmax(logits) right after the codes are placed, as a fraction of ln V


@MODELS.register_module()
class GumbelVQGANTrainer(VQGANTrainer):
    """Train a GumbelVQGAN; inputs are images (B, 3, H, W) in [0, 1].

    Args:
        temperature: Gumbel-softmax temperature after the warm-up and at the end.
        temperature_schedule: 'exponential', or 'cosine' as taming's LambdaWarmUpCosineScheduler.
        kl_weight: weight of KL(softmax(logits) || uniform).
        kwargs: arguments of `VQGANTrainer`.
    """

    network = GumbelVQGAN

    def __init__(
        self,
        *,
        temperature: tuple[float, float] = (1.0, 0.5),
        temperature_schedule: str = 'exponential',
        kl_weight: float = 1e-4,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_choice('temperature_schedule', temperature_schedule, ('exponential', 'cosine'))
        if min(temperature) <= 0:
            raise ValueError(f'Expected positive temperatures, got {temperature}')
        self.temperature, self.temperature_schedule = temperature, temperature_schedule
        self.kl_weight = kl_weight

    def tau(self) -> float:
        """Return the Gumbel-softmax temperature of the current iteration."""
        (start, end), progress = self.temperature, self.progress()
        if self.temperature_schedule == 'cosine':
            return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
        return start * (end / start) ** progress

    def quantize(self, latents: Tensor) -> Quantized:
        """Sample codes for fp32 latents (B, D, h, w)."""
        logits, tau = self.vqgan.token_logits(latents), self.tau()
        codes = F.gumbel_softmax(logits, tau, hard=True, dim=1)
        log_probs = logits.log_softmax(dim=1)
        kl = (log_probs.exp() * (log_probs + math.log(logits.shape[1]))).sum(dim=1).mean()
        return Quantized(
            embed_tokens(codes, self.vqgan.codebook),
            logits.argmax(dim=1),
            self.kl_weight * kl,
            dict(kl=kl.detach(), temperature=kl.new_tensor(tau)),
        )

    @torch.no_grad()
    def place_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """Initialize with codes (V, D); logits become scaled negative squared distances to them."""
        # -|z - e|^2 = 2 z.e - |e|^2 - |z|^2; softmax ignores the last term.
        squared = codes.square().sum(dim=1)
        scale = scale_for_entropy(2 * vectors[-4096:] @ codes.T - squared, START_ENTROPY)
        proj = self.vqgan.quantize['proj']
        proj.weight.copy_((2 * scale * codes)[:, :, None, None])
        proj.bias.copy_(-scale * squared)
        self.vqgan.codebook.copy_(codes)
        for tensor in (proj.weight, proj.bias):
            broadcast(tensor.data)  # the scale differs between ranks

    @torch.no_grad()
    def restart_codes(self, ids: Tensor, codes: Tensor) -> None:
        """Move the codes `ids` (K,) to `codes` (K, D), with classifier rows as if placed there.

        The scale is estimated from the other rows. At its position e, a code leads the code c
        that was picked there so far by scale * |e - c|^2, as logits from distances would.
        """
        proj, codebook = self.vqgan.quantize['proj'], self.vqgan.codebook
        alive = torch.ones(len(codebook), dtype=torch.bool, device=ids.device)
        alive[ids] = False
        rows, bias = proj.weight.flatten(1)[alive], proj.bias[alive]
        scale = rows.norm() / (2 * codebook[alive].norm())
        logits, picked = (codes @ rows.T + bias).max(dim=1)
        lead = scale * (codes - codebook[alive][picked]).square().sum(dim=1)
        proj.weight[ids] = (2 * scale * codes)[:, :, None, None]
        proj.bias[ids] = logits + lead - 2 * scale * codes.square().sum(dim=1)
        codebook[ids] = codes
