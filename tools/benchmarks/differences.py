"""How far two-view crops lie from those of Pillow and of whole images, in levels of 256."""

import math
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from torchvision.transforms import RandomResizedCrop

from benchmarks.measure import ROOT, Fact
from benchmarks.photos import SEED, photo_paths
from mcbeit_mm.datasets.images import read_image
from mcbeit_mm.datasets.resampling import resize

SCALED = {  # size of the student view -> config that decodes JPEGs at a part of their size
    224: 'configs/pretrain/mcbeit_vit-small-p16_1xb256-bf16-coslr-300e_photos.py',
    128: 'configs/pretrain/mcbeit_vit-tiny-p16_1xb128-bf16-coslr-100e_photos-128px.py',
}


def scaled_steps(size: int) -> tuple[ConfigDict, ConfigDict]:
    """Loading and cropping of the config whose student view has this size."""
    pipeline = Config.fromfile(ROOT / SCALED[size]).train_pipeline
    return pipeline[0], pipeline[2]


def summary(name: str, gaps: np.ndarray, how: str) -> Fact:
    """Absolute differences as a fact."""
    noise = 10 * math.log10(255**2 / max((gaps**2.0).mean(), 1e-12))
    value = f'mean {gaps.mean():.3g}, largest {gaps.max()}'
    return Fact(f'data, {name}', value, f'levels, PSNR {noise:.1f} dB', how)


def scaled_facts(folder: Path, crops: int) -> list[Fact]:
    """Views of JPEGs decoded at a part of their size against the same crops of whole ones.

    Args:
        crops: per photo, drawn as in training and again of the smallest area.
    """
    found = []
    for size in SCALED:
        load, crop = scaled_steps(size)
        for what, scale in (('crops as drawn', crop.scale), ('smallest crops', crop.scale[:1] * 2)):
            divisor, views = scaled_gaps(folder, crops, load.enough_pixels, size, scale)
            for name, gaps in views.items():
                how = f'{what}, {len(gaps)} in all, decoded at 1/{divisor}'
                found.append(summary(f'scaled decoding, {name}', gaps, how))
    return found


def scaled_gaps(
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
            box = np.array(RandomResizedCrop.get_params(shape, scale, (3 / 4, 4 / 3)))
            pair = cut(whole, *(divisor * box)), cut(small, *box)
            for name, (side, kind) in views.items():
                a, b = (resize(c, (side, side), kind, 'torch').astype(int) for c in pair)
                gaps[name].append(np.abs(a - b))
    return divisor, {name: np.stack(found) for name, found in gaps.items()}


def cut(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return image[top : top + height, left : left + width]
