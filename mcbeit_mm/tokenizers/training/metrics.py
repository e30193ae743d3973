"""Reconstruction quality and codebook usage of a tokenizer in training."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from .codebook import perplexity


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """PSNR, SSIM and codebook usage of a tokenizer on the validation set.

    Reads `reconstruction` and `original` (3, H, W) in [0, 1], `codes` (h, w) and `vocab_size` of
    each data sample. Results:

    - `psnr` (dB, at most 100 per image) and `ssim` (torchmetrics; 11-px Gaussian window of sigma
      1.5), means over images;
    - `codebook_usage`, fraction of the codes that occur, and `perplexity` of their histogram, over
      the whole set.
    """

    default_prefix = 'val'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep PSNR, SSIM and codes (int32, to save memory) of each image."""
        from torchmetrics.functional.image import structural_similarity_index_measure  # slow

        for sample in data_samples:
            pair = [sample[name].float().unsqueeze(0) for name in ('reconstruction', 'original')]
            ssim = structural_similarity_index_measure(*pair, data_range=1.0)
            codes = sample['codes'].flatten().to('cpu', torch.int32)
            self.results.append((float(psnr(*pair)), float(ssim), codes, sample['vocab_size']))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the metrics over the images of all ranks."""
        psnrs, ssims, codes, (vocab_size, *_) = zip(*results, strict=True)
        counts = torch.bincount(torch.cat(codes), minlength=vocab_size)
        return dict(
            psnr=sum(psnrs) / len(psnrs),
            ssim=sum(ssims) / len(ssims),
            codebook_usage=float((counts > 0).double().mean()),
            perplexity=float(perplexity(counts)),
        )


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB, at most 100, of images (B, ...) in [0, 1]."""
    error = (images - reference).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()
