"""Train a small Gumbel VQGAN on your own images: a plain autoencoder first, then its codes.

A codebook that starts at random collapses to a few codes. Here encoder and decoder first learn
without one; then k-means over the encoder's latents places the codes and the classifier that
picks them, and training goes on with straight-through Gumbel samples, reconstruction loss and a
small KL to the uniform distribution, as the Gumbel VQGAN of CompVis/taming-transformers.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor

from .gumbel_vqgan import GumbelVQGAN
from .release import write_release


@MODELS.register_module()
class GumbelVQGANTrainer(BaseModel):
    """A GumbelVQGAN in training; inputs are images (B, 3, H, W) in [0, 1].

    Args:
        warmup_iters: iterations of the plain autoencoder before the codes are placed.
        total_iters: length of training; the temperature falls exponentially until then.
        temperature: Gumbel-softmax temperature when codes come in, and at the end.
        rec_weight: weight of the reconstruction's L1.
        kl_weight: weight of KL(softmax(logits) || uniform).
        start_entropy: mean entropy of softmax(logits) right after the codes are placed, as a
            share of ln V: how soft the first choices are.
    """

    def __init__(
        self,
        ddconfig: dict[str, Any],
        n_embed: int,
        embed_dim: int,
        warmup_iters: int,
        total_iters: int,
        temperature: tuple[float, float] = (1.0, 0.5),
        rec_weight: float = 1.0,
        kl_weight: float = 1e-4,
        start_entropy: float = 0.5,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not 0 < warmup_iters < total_iters:
            raise ValueError(
                f'need 0 < warmup_iters < total_iters, got {warmup_iters=} {total_iters=}'
            )
        self.sizes = dict(ddconfig=dict(ddconfig), n_embed=n_embed, embed_dim=embed_dim)
        self.vqgan = GumbelVQGAN(**self.sizes)
        self.warmup_iters, self.total_iters = warmup_iters, total_iters
        self.temperature, self.start_entropy = temperature, start_entropy
        self.rec_weight, self.kl_weight = rec_weight, kl_weight
        # In the state dict, so that a resumed run goes on with the same schedule and statistics.
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        self.register_buffer('usage', torch.full((n_embed,), 1 / n_embed))  # moving code histogram
        self._latents: list[Tensor] = []

    def tau(self) -> float:
        """Gumbel-softmax temperature of the current iteration."""
        span = self.total_iters - self.warmup_iters
        progress = min(max((int(self.iteration) - self.warmup_iters) / span, 0.0), 1.0)
        start, end = self.temperature
        return start * (end / start) ** progress

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor]:
        """Token logits of images (B, 3, H, W) in [0, 1]; the losses with mode='loss'."""
        x = 2 * inputs - 1
        return self.loss(x) if mode == 'loss' else self.vqgan.encode(x)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """One step of whichever phase the iteration is in; x (B, 3, H, W) in [-1, 1]."""
        vqgan = self.vqgan
        latents = vqgan.encode_latents(x).float()
        with_codes = int(self.iteration) >= self.warmup_iters
        if int(self.iteration) == self.warmup_iters and self.training:
            self._place_codes(torch.cat(self._latents or [_vectors(latents)]))
            self._latents = []
        logits = vqgan.quantize['proj'](latents).float()
        if with_codes:
            codes = F.gumbel_softmax(logits, self.tau(), hard=True, dim=1)
            images = vqgan.decode_tokens(codes)
        else:
            self._keep(latents)
            images = vqgan.decode_latents(latents)
        rec = (images.float() - x).abs().mean()
        log_probs = logits.log_softmax(dim=1)
        kl = (log_probs.exp() * (log_probs + math.log(logits.shape[1]))).sum(dim=1).mean()
        if with_codes:
            total = self.rec_weight * rec + self.kl_weight * kl
        else:  # every parameter takes part in every backward pass, which DDP insists on
            total = self.rec_weight * rec + 0 * kl + 0 * vqgan.quantize['embed'].weight.sum()
        self.iteration += self.training
        return dict(loss=total, **self._metrics(images, x, rec, kl, logits))

    @torch.no_grad()
    def _metrics(self, images: Tensor, x: Tensor, rec: Tensor, kl: Tensor, logits: Tensor) -> dict:
        mse = ((images.float().clamp(-1, 1) - x) / 2).square().mean((1, 2, 3))
        ids = logits.argmax(dim=1).flatten()
        histogram = torch.bincount(ids, minlength=len(self.usage)) / ids.numel()
        self.usage.lerp_(histogram, 0.02)
        return dict(
            rec=rec.detach(),
            kl=kl.detach(),
            psnr=(-10 * mse.clamp_min(1e-10).log10()).mean(),
            temperature=rec.new_tensor(self.tau()),
            # A code counts as used when it holds over a tenth of its fair share.
            codebook_usage=(self.usage > 0.1 / len(self.usage)).float().mean(),
            perplexity=torch.special.entr(self.usage).sum().exp(),
        )

    @torch.no_grad()
    def _keep(self, latents: Tensor) -> None:
        """Remember the newest latents: 64 vectors per code are plenty for k-means."""
        self._latents.append(_vectors(latents))
        while sum(map(len, self._latents[1:])) >= 64 * len(self.usage):
            self._latents.pop(0)

    @torch.no_grad()
    def _place_codes(self, vectors: Tensor) -> None:
        """Set codebook and classifier so that logits are minus scaled squared distances."""
        codes = kmeans(vectors, len(self.usage))
        # -|z - e|^2 = 2 z.e - |e|^2 - |z|^2, and softmax does not see the last term.
        squared = codes.square().sum(dim=1)
        scale = scale_for_entropy(2 * vectors[:4096] @ codes.T - squared, self.start_entropy)
        proj = self.vqgan.quantize['proj']
        proj.weight.copy_((2 * scale * codes)[:, :, None, None])
        proj.bias.copy_(-scale * squared)
        self.vqgan.quantize['embed'].weight.copy_(codes)
        for tensor in (proj.weight, proj.bias, self.vqgan.quantize['embed'].weight):
            broadcast(tensor.data)  # each rank has seen other images
        print_log(f'placed {len(codes)} codes by k-means over {len(vectors)} latents', 'current')


def _vectors(latents: Tensor) -> Tensor:
    return latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def kmeans(vectors: Tensor, num_codes: int, rounds: int = 10) -> Tensor:
    """Lloyd's algorithm: (N, D) vectors -> (num_codes, D) centres; empty ones are redrawn."""

    def draw(count: int) -> Tensor:
        return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]

    centres = draw(num_codes)
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in vectors.split(8192)])
        counts = torch.bincount(nearest, minlength=num_codes)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        means = sums / counts.clamp_min(1).unsqueeze(1)
        centres = torch.where(counts.unsqueeze(1) > 0, means, draw(num_codes))
    return centres


def scale_for_entropy(logits: Tensor, share: float) -> float:
    """Factor that gives softmax(factor * logits), (N, V), a mean entropy of share * ln V nats."""
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        entropy = torch.special.entr((middle * logits).softmax(dim=1)).sum(dim=1).mean()
        low, high = (middle, high) if entropy > share * math.log(logits.shape[1]) else (low, middle)
    return middle


@HOOKS.register_module()
class ExportTokenizerHook(Hook):
    """After training, write `<work_dir>/tokenizer` (model.yaml, last.ckpt) in the released layout.

    `GumbelVQGANTokenizer(checkpoint='<work_dir>/tokenizer')` loads it without further arguments.
    """

    def after_train(self, runner: Runner) -> None:
        """Write the folder on the first rank."""
        if runner.rank == 0:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            folder = f'{runner.work_dir}/tokenizer'
            write_release(folder, model.vqgan, model.sizes)
            runner.logger.info(f'tokenizer written to {folder}')
