"""Draw reconstructions after each validation of a tokenizer in training."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from ...tokenizers.base import to_uint8

GAP = 4  # white pixels between images
MIN_SIDE = 128  # pixels; smaller images are enlarged by an integer factor


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Adds an image 'reconstructions' to the visualizer: originals above their reconstructions.

    Shows the first validation images of the main process. Data samples need `original` and
    `reconstruction`, (3, H, W) in [0, 1]. MMEngine's local backend saves the image as
    vis_data/vis_image/reconstructions_<iteration>.png.
    """

    def __init__(self, num_images: int = 8):
        if num_images < 1:
            raise ValueError(f'expected num_images >= 1, got {num_images}')
        self.num_images = num_images
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def before_val_epoch(self, runner: Runner) -> None:
        """Drop images of an interrupted validation."""
        self._pairs = []

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Keep the first images."""
        if is_main_process():
            for sample in (outputs or [])[: self.num_images - len(self._pairs)]:
                self._pairs.append((sample.original.cpu(), sample.reconstruction.cpu()))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw the kept images."""
        if self._pairs:
            rows = (torch.stack(images) for images in zip(*self._pairs, strict=True))
            runner.visualizer.add_image('reconstructions', picture(*rows), step=runner.iter)
        self._pairs = []


def picture(originals: Tensor, reconstructions: Tensor) -> np.ndarray:
    """Return two rows of images (B, 3, H, W) in [0, 1] as one RGB image, uint8."""
    factor = -(-MIN_SIDE // min(originals.shape[2:]))
    rows = np.stack([to_uint8(originals.float()), to_uint8(reconstructions.float())])
    rows = rows.repeat(factor, axis=2).repeat(factor, axis=3)
    tiles = np.pad(rows, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    lines = [np.concatenate(list(row), axis=1) for row in tiles]
    return np.concatenate(lines)[:-GAP, :-GAP]
