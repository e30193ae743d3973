"""Image -> (student view, tokenizer view, mask).

Random numbers come from the global generators of NumPy, torch and random, which
`datasets.seeded_data.SeededDataset` seeds before each sample.
Source: lixiaotong97/mc-BEiT@37489a1 datasets.py, transforms.py, masking_generator.py (BEiT's block
mask).
"""

import math

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from torchvision.transforms import RandomResizedCrop

from .datasets.resampling import BACKENDS, INTERPOLATIONS, resize
from .layers.blocks import check_choice

Size = int | tuple[int, int]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@TRANSFORMS.register_module()
class TwoViewRandomResizedCrop(BaseTransform):
    """Resize one random crop twice: results['img'] becomes [student view, tokenizer view], uint8
    (H, W, 3).

    Both views resample the cropped pixels with antialiasing, as Pillow and the authors do, and
    share the flip.

    Args:
        size: student view, side or (H, W) in pixels.
        second_size: tokenizer view, the patch grid times the tokenizer's stride.
        scale: range of the crop's area relative to the image.
        ratio: range of the crop's aspect ratio, width / height.
        backend: 'torch', faster and within 2 levels of Pillow, or 'pillow'.
        flip_prob: probability of a horizontal flip. Draws and views equal those of mmcv's
            RandomFlip before this transform, without its 0.1 ms per image.
    """

    def __init__(
        self,
        size: Size = 224,
        second_size: Size = 112,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = 'bicubic',
        second_interpolation: str = 'lanczos',
        backend: str = 'torch',
        flip_prob: float = 0.0,
    ):
        check_choice('interpolation', interpolation, tuple(INTERPOLATIONS))
        check_choice('second_interpolation', second_interpolation, tuple(INTERPOLATIONS))
        check_choice('backend', backend, BACKENDS)
        if not 0 <= flip_prob <= 1:
            raise ValueError(f'flip_prob must be in [0, 1], got {flip_prob}')
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f'scale and ratio must be (low, high) ranges, got {scale=} {ratio=}')
        sizes = (_pair(size), _pair(second_size))
        self.targets = list(zip(sizes, (interpolation, second_interpolation), strict=True))
        self.scale, self.ratio = list(scale), list(ratio)
        self.backend, self.flip_prob = backend, flip_prob

    def transform(self, results: dict) -> dict:
        """Replace the image with its two views."""
        crop = self.draw(results['img'])
        results['img'] = [resize(crop, *target, self.backend) for target in self.targets]
        results['img_shape'] = self.targets[0][0]
        return results

    def draw(self, image: np.ndarray) -> np.ndarray:
        """Flip and crop an image at random, without a copy."""
        if image.dtype != np.uint8:
            raise ValueError(f'expected an 8-bit image, got {image.dtype}')
        if self.flip_prob and np.random.random() < self.flip_prob:
            image = image[:, ::-1]
        shape = torch.empty(image.shape[:2], device='meta')  # get_params reads only the shape
        top, left, height, width = RandomResizedCrop.get_params(shape, self.scale, self.ratio)
        return image[top : top + height, left : left + width]


class PatchMask(BaseTransform):
    """Base class that adds results['mask'], bool (h, w) over the patch grid, True = masked."""

    def __init__(self, grid_size: Size = 14):
        self.grid_size = _pair(grid_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def generate(self) -> np.ndarray:
        """Draw one mask."""
        raise NotImplementedError

    def transform(self, results: dict) -> dict:
        """Add a new mask."""
        results['mask'] = self.generate()
        return results


@TRANSFORMS.register_module()
class RandomPatchMask(PatchMask):
    """Mask int(mask_ratio * h * w) patches, chosen uniformly: 147 of 196 at the authors' 0.75."""

    def __init__(self, grid_size: Size = 14, mask_ratio: float = 0.75):
        super().__init__(grid_size)
        if not 0 < mask_ratio <= 1:
            raise ValueError(f'mask_ratio must be in (0, 1], got {mask_ratio}')
        self.num_masked = int(mask_ratio * self.num_patches)

    def generate(self) -> np.ndarray:
        """Draw one mask."""
        mask = np.zeros(self.num_patches, dtype=bool)
        mask[np.random.permutation(self.num_patches)[: self.num_masked]] = True
        return mask.reshape(self.grid_size)


@TRANSFORMS.register_module()
class BlockMask(PatchMask):
    """BEiT's mask: rectangular blocks until `num_masked` patches are masked or no block fits.

    The count never exceeds `num_masked` and often falls short. Unlike in mmpretrain's
    BEiTMaskGenerator, the last row and column can be masked.

    Args:
        num_masked: maximum number of masked patches; the authors mask 75 of 196.
        min_block: lower bound of a block's area before rounding, in patches.
        min_aspect: aspect ratios are log-uniform in [min_aspect, 1 / min_aspect].
        attempts: maximum number of tries per block.
    """

    def __init__(
        self,
        grid_size: Size = 14,
        num_masked: int = 75,
        min_block: int = 16,
        min_aspect: float = 0.3,
        attempts: int = 10,
    ):
        super().__init__(grid_size)
        if not 0 < num_masked <= self.num_patches:
            raise ValueError(f'num_masked must be in [1, {self.num_patches}], got {num_masked}')
        if not 0 < min_aspect <= 1:
            raise ValueError(f'min_aspect must be in (0, 1], got {min_aspect}')
        self.num_masked, self.min_block = num_masked, min_block
        self.log_aspect = (math.log(min_aspect), -math.log(min_aspect))
        self.attempts = attempts

    def generate(self) -> np.ndarray:
        """Draw one mask."""
        mask = np.zeros(self.grid_size, dtype=bool)
        while (room := self.num_masked - int(mask.sum())) > 0:
            if not self._add_block(mask, room):
                break
        return mask

    def _add_block(self, mask: np.ndarray, room: int) -> bool:
        """Mask one block that adds between 1 and `room` patches; False if no attempt finds one."""
        rows, cols = self.grid_size
        for _ in range(self.attempts):
            area = np.random.uniform(self.min_block, room)
            aspect = math.exp(np.random.uniform(*self.log_aspect))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            if not (0 < height < rows and 0 < width < cols):
                continue
            top = np.random.randint(rows - height + 1)
            left = np.random.randint(cols - width + 1)
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - int(block.sum()) <= room:
                block[:] = True
                return True
        return False
