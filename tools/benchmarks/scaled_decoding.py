"""What scaled decoding of JPEGs does to the views: same crops of the whole and the small image."""

import math
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from torchvision.transforms import RandomResizedCrop

from benchmarks.measure import Fact
from benchmarks.photos import photo_paths
from mcbeit_mm.datasets.images import read_image
from mcbeit_mm.datasets.resampling import resize

CONFIGS = {
    224: 'configs/pretrain/mcbeit_vit-small-p16_1xb256-bf16-coslr-300e_photos.py',
    128: 'configs/pretrain/mcbeit_vit-tiny-p16_1xb128-bf16-coslr-100e_photos-128px.py',
}
SEED = 0


def steps(size: int) -> tuple[ConfigDict, ConfigDict]:
    """Loading and cropping of the photo config whose views have this size."""
    pipeline = Config.fromfile(Path(__file__).parents[2] / CONFIGS[size]).train_pipeline
    return pipeline[0], pipeline[2]


def facts(folder: Path, crops: int) -> list[Fact]:
    """How far views of scaled images lie from those of whole ones, in levels of 256.

    Args:
        folder: of `photo_folder`, its photos large enough to be scaled.
        crops: per photo, drawn as in training and again of the smallest area.
    """
    found = []
    for size in CONFIGS:
        load, crop = steps(size)
        for what, scale in (('crops as drawn', crop.scale), ('smallest crops', crop.scale[:1] * 2)):
            divisor, views = differences(folder, crops, load.enough_pixels, size, scale)
            for name, gaps in views.items():
                how = f'{what}, {len(gaps)} in all, decoded at 1/{divisor}'
                found.append(Fact(f'data, scaled decoding, {name}', *summary(gaps), how))
    return found


def differences(
    folder: Path, crops: int, enough: int, size: int, scale: tuple[float, float]
) -> tuple[int, dict[str, np.ndarray]]:
    """Divisor of the last photo's sides, and per view the differences (crops, H, W, 3)."""
    torch.manual_seed(SEED)
    views = {f'{size}, bicubic': (size, 'bicubic'), f'{size // 2}, Lanczos': (size // 2, 'lanczos')}
    gaps = {name: [] for name in views}
    for path in photo_paths(folder):
        data = path.read_bytes()
        whole, small = read_image(data), read_image(data, enough_pixels=enough)
        divisor = math.ceil(whole.shape[0] / small.shape[0])
        shape = torch.empty([side // divisor for side in whole.shape[:2]], device='meta')
        for _ in range(crops):
            box = RandomResizedCrop.get_params(shape, scale, (3 / 4, 4 / 3))
            pair = cut(whole, *(divisor * side for side in box)), cut(small, *box)
            for name, (side, filter_) in views.items():
                a, b = (resize(c, (side, side), filter_, 'torch').astype(int) for c in pair)
                gaps[name].append(np.abs(a - b))
    return divisor, {name: np.stack(found) for name, found in gaps.items()}


def cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return image[top : top + height, left : left + width]


def summary(gaps: np.ndarray) -> tuple[str, str]:
    """Value and unit of a fact."""
    noise = 10 * math.log10(255**2 / max((gaps**2.0).mean(), 1e-12))
    return f'mean {gaps.mean():.2f}, largest {gaps.max()}', f'levels, PSNR {noise:.1f} dB'
