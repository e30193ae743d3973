"""How well a tokenizer in training reconstructs, and how many of its codes it uses."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """PSNR, SSIM and code usage of `reconstruction`, `original` and `codes` of the data samples.

    The images (3, H, W) are in [0, 1], `codes` (h, w) are ids in [0, vocab_size). Results:

    - `psnr`, dB, mean over images of -10 log10 MSE (100 dB at most), and `ssim`, mean over images
      (Wang et al. 2004: 11-px Gaussian window of sigma 1.5), by torchmetrics;
    - `codebook_usage`, share 0..1 of the vocabulary that occurs in the whole validation set, and
      `perplexity`, the exponential of the entropy of its histogram.

    Each sample also tells `vocab_size`.

    Args:
        kwargs: arguments of MMEngine's BaseMetric (`prefix`, `collect_device`).

    Raises:
        ImportError: torchmetrics is missing.
    """

    default_prefix = 'val'

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._ssim = _import_ssim()

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep PSNR, SSIM, codes and vocabulary of each image; int32 codes are small beside it."""
        for sample in data_samples:
            images = (sample[name].float().unsqueeze(0) for name in ('reconstruction', 'original'))
            reconstruction, original = images
            psnr = _psnr(reconstruction, original)
            ssim = self._ssim(reconstruction, original, data_range=1.0)
            codes = sample['codes'].flatten().to('cpu', torch.int32).numpy()
            self.results.append((float(psnr), float(ssim), codes, sample['vocab_size']))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of the images of all ranks.

        Raises:
            ValueError: a code outside [0, vocab_size).
        """
        psnr, ssim, codes, sizes = zip(*results, strict=True)
        ids, vocab_size = np.concatenate(codes), sizes[0]
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f'codes from {ids.min()} to {ids.max()}, expected [0, {vocab_size})')
        counts = np.bincount(ids, minlength=vocab_size)
        probs = counts[counts > 0] / counts.sum()
        return dict(
            psnr=float(np.mean(psnr)),
            ssim=float(np.mean(ssim)),
            codebook_usage=float((counts > 0).mean()),
            perplexity=float(np.exp(-(probs * np.log(probs)).sum())),
        )


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * (a - b).square().mean().clamp(min=1e-10).log10()


def _import_ssim() -> Callable[..., Tensor]:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError('ReconstructionMetric needs: pip install torchmetrics') from error
    return structural_similarity_index_measure
