"""Base class of the VQGAN trainers: phases, losses and validation.

A randomly initialized codebook tends to collapse to a few codes. The encoder and decoder may
therefore be trained alone first (`warmup_iters`); k-means over the latents then initializes the
codes, and training continues with the quantizer. The losses are those of
CompVis/taming-transformers (VQLPIPSWithDiscriminator).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..vqgan import VQGAN
from .codebook import CodeUsage, as_vectors, count_codes, draw, kmeans
from .discriminator import adversarial_loss
from .metrics import psnr


class Quantized(NamedTuple):
    """Output of a quantizer for latents (B, D, h, w)."""

    latents: Tensor  # (B, D, h, w) for the decoder, with straight-through gradients
    ids: Tensor  # (B, h, w), the most likely codes
    loss: Tensor  # weighted loss of the quantizer
    logs: dict[str, Tensor]


class VQGANTrainer(BaseModel):
    """Train a VQGAN; inputs are images (B, 3, H, W) in [0, 1].

    Subclasses set `network` and implement

    - `quantize(latents)`: quantize fp32 latents (B, D, h, w) as `Quantized`, autocast disabled;
    - `place_codes(codes, vectors)`: initialize with the k-means centers `codes` (V, D), equal on
      all ranks; `vectors` (N, D) are the latents of this rank;
    - `restart_codes(ids, codes)`: move the codes `ids` (K,) to `codes` (K, D), equal on all ranks.

    Args:
        warmup_iters: autoencoder iterations before k-means places the codes; 0 starts with random
            codes, as taming does.
        total_iters: length of training, the end of all schedules.
        perceptual: config of a module that maps two image batches to distances (B,).
        discriminator: config of a module that maps images to logits, positive for real.
        disc_weight: adversarial weight relative to the reconstruction gradient at the last layer.
        disc_start: first iteration with the adversarial loss; 250001 in taming's ImageNet config.
        restart_interval: iterations between moves of dead codes to random latents; 0 disables it.
    """

    network: type[VQGAN]

    def __init__(
        self,
        ddconfig: dict[str, Any],
        n_embed: int,
        embed_dim: int,
        warmup_iters: int,
        total_iters: int,
        perceptual: dict | None = None,
        perceptual_weight: float = 1.0,
        discriminator: dict | None = None,
        disc_weight: float = 0.8,
        disc_start: int = 0,
        restart_interval: int = 0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not 0 <= warmup_iters < total_iters:
            raise ValueError(
                f'Expected 0 <= warmup_iters < total_iters, got {warmup_iters=} {total_iters=}'
            )
        if discriminator and not 0 <= disc_start < total_iters:
            raise ValueError(
                f'Expected 0 <= disc_start < total_iters, got {disc_start=} {total_iters=}'
            )
        self.sizes = dict(ddconfig=dict(ddconfig), n_embed=n_embed, embed_dim=embed_dim)
        self.vqgan = self.network(**self.sizes)
        self.warmup_iters, self.total_iters = warmup_iters, total_iters
        self.perceptual = MODELS.build(perceptual) if perceptual else None
        self.perceptual_weight = perceptual_weight
        self.discriminator = MODELS.build(discriminator) if discriminator else None
        self.disc_weight, self.disc_start = disc_weight, disc_start
        self.restart_interval = restart_interval
        self.usage = CodeUsage(n_embed)
        # In the state dict: a resumed run continues the schedules.
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        self.register_buffer('placed', torch.tensor(warmup_iters == 0))
        self._latents: list[Tensor] = []

    @property
    def has_codes(self) -> bool:
        """Whether the codes are in use; the first iteration after the warm-up places them."""
        return bool(self.placed)

    def progress(self) -> float:
        """Return the completed fraction of the iterations after the warm-up."""
        span = self.total_iters - self.warmup_iters
        return min(max((int(self.iteration) - self.warmup_iters) / span, 0.0), 1.0)

    def rank_state(self) -> list[Tensor] | None:
        """Return the latents this rank collected in the warm-up; None afterwards."""
        return [latents.cpu() for latents in self._latents] or None

    def load_rank_state(self, state: list[Tensor]) -> None:
        """Restore the collected latents."""
        device = self.iteration.device
        self._latents = [latents.to(device) for latents in state]

    def forward(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        """Return losses, predictions or token logits (by `mode`) of images in [0, 1]."""
        x = 2 * inputs - 1
        if mode == 'loss':
            return self.loss(x)
        return self.predict(x, data_samples) if mode == 'predict' else self.vqgan.encode(x)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """Return the losses of a training iteration; x (B, 3, H, W) in [-1, 1]."""
        latents = self.vqgan.encode_latents(x).float()
        if self.has_codes or self._can_place(latents):
            with torch.autocast(x.device.type, enabled=False):
                self._prepare_codes(latents)
                latents, ids, total, logs = self.quantize(latents)
                self.usage.update(count_codes(ids, self.vqgan.vocab_size))
            logs = logs | self.usage.logs()
        else:
            self._collect(latents)
            total, logs = _zero(self.vqgan.quantize), {}
        images = self.vqgan.decode_latents(latents)
        rec, rec_logs = self._reconstruction(images.float(), x)
        gan, gan_logs = self._adversarial(images, x, rec)
        self.iteration += 1
        return dict(loss=rec + total + gan, **rec_logs, **logs, **gan_logs)

    @torch.no_grad()
    def predict(self, x: Tensor, data_samples: list[DataSample] | None = None) -> list[DataSample]:
        """Set the fields that :class:`ReconstructionMetric` reads.

        During the warm-up, reconstructions are those of the plain autoencoder.
        """
        latents = self.vqgan.encode_latents(x).float()
        with torch.autocast(x.device.type, enabled=False):
            ids = self.vqgan.token_logits(latents).argmax(dim=1)
        decode = self.vqgan.decode_tokens if self.has_codes else self.vqgan.decode_latents
        images = decode(ids if self.has_codes else latents).float()
        data_samples = data_samples or [DataSample() for _ in x]
        for sample, image, original, codes in zip(data_samples, images, x, ids, strict=True):
            sample.set_field(((image + 1) / 2).clamp(0, 1), 'reconstruction')
            sample.set_field((original + 1) / 2, 'original')
            sample.set_field(codes, 'codes')
            sample.set_field(self.vqgan.vocab_size, 'vocab_size')
        return data_samples

    def _reconstruction(self, images: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rec = F.l1_loss(images, x)
        shown = (images.detach().clamp(-1, 1) + 1) / 2
        logs = dict(rec=rec.detach(), psnr=psnr(shown, (x + 1) / 2).mean())
        if self.perceptual is not None:
            distance = self.perceptual(images, x).float().mean()
            rec = rec + self.perceptual_weight * distance
            logs['perceptual'] = distance.detach()
        return rec, logs

    def _adversarial(self, images: Tensor, x: Tensor, rec: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Return generator plus discriminator loss for decoded and real images."""
        disc = self.discriminator
        if disc is None:
            return 0, {}
        if int(self.iteration) < self.disc_start:
            return _zero(disc), {}
        last_layer = self.vqgan.decoder.conv_out.weight
        return adversarial_loss(disc, images, x, rec, last_layer, self.disc_weight)

    @torch.no_grad()
    def _collect(self, latents: Tensor) -> None:
        """Keep the newest latents, 64 vectors per code, for k-means."""
        self._latents.append(as_vectors(latents))
        while sum(map(len, self._latents[1:])) >= 64 * self.vqgan.vocab_size:
            self._latents.pop(0)

    def _can_place(self, latents: Tensor) -> bool:
        """Whether the warm-up is over with enough latents collected; resuming may lose them."""
        wanted = min(64 * self.vqgan.vocab_size, self.warmup_iters * latents[:, 0].numel())
        return int(self.iteration) >= self.warmup_iters and sum(map(len, self._latents)) >= wanted

    @torch.no_grad()
    def _prepare_codes(self, latents: Tensor) -> None:
        """Place the codes at the end of the warm-up; later, restart dead ones.

        Called before any code enters the graph. Adam's moments of restarted rows are kept: those
        of a code that was not picked have decayed to about zero.
        """
        since = int(self.iteration) - self.warmup_iters
        if not self.has_codes:
            vectors, num_codes = torch.cat(self._latents), self.vqgan.vocab_size
            self._latents = []
            self.placed.fill_(True)
            self.place_codes(kmeans(vectors, num_codes), vectors)
            print_log(f'Placed {num_codes} codes by k-means over {len(vectors)} latents', 'current')
        elif since > 0 and self.restart_interval and since % self.restart_interval == 0:
            dead = self.usage.dead()
            if len(dead):
                self.restart_codes(dead, draw(as_vectors(latents), len(dead)))
                self.usage.restart(dead)
                print_log(f'Restarted {len(dead)} dead codes', 'current')


def _zero(module: nn.Module) -> Any:
    """Return 0 with zero gradients for all parameters: DDP expects all of them in each backward."""
    return sum(0 * p.sum() for p in module.parameters() if p.requires_grad)
