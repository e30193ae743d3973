"""Resize 8-bit images with antialiasing as Pillow defines it, by torch or by Pillow.

Both resize horizontally, round to 8 bits, then resize vertically. Pillow 13 swaps the order where
that is cheaper, which changes single pixels by up to 14 levels; so it is called once per direction.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

BACKENDS = ('torch', 'pillow')
INTERPOLATIONS = {
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'lanczos': Image.Resampling.LANCZOS,
}


def resize(
    image: np.ndarray, size: tuple[int, int], interpolation: str, backend: str = 'torch'
) -> np.ndarray:
    """Resize an image; torch's pixels are within 2 levels of Pillow's.

    A flipped view, as returned by mmcv's RandomFlip, is resized unflipped, which saves a copy.
    Interpolations that torch lacks (lanczos before 2.12) use Pillow.

    Args:
        image: uint8 (h, w, 3), or (h, w) for gray, with any strides.
        size: (H, W) of the result.

    Returns:
        uint8 (H, W, 3) or (H, W). torch's result is channels-first in memory, so that PackInputs
        copies nothing.
    """
    if backend == 'pillow' or not torch_resizes(interpolation):
        resampling = INTERPOLATIONS[interpolation]
        rows = Image.fromarray(image).resize((size[1], image.shape[0]), resampling)
        return np.array(rows.resize(size[::-1], resampling))
    flipped = [axis for axis, stride in enumerate(image.strides) if stride < 0]
    pixels = torch.from_numpy(np.atleast_3d(np.flip(image, flipped) if flipped else image))
    channels_first = pixels.permute(2, 0, 1)[None]
    resized = F.interpolate(channels_first, size, mode=interpolation, antialias=True)[0]
    resized = resized.permute(1, 2, 0)
    if flipped:
        resized = resized.flip(flipped)
    return resized.numpy().reshape(*size, *image.shape[2:])


@cache
def torch_resizes(interpolation: str) -> bool:
    """Whether the installed torch supports the interpolation for 8-bit images."""
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    try:
        F.interpolate(pixels, (2, 2), mode=interpolation, antialias=True)
    except (NotImplementedError, ValueError):
        return False
    return True
