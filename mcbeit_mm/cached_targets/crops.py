"""Draw the fixed crops whose targets are cached."""

import errno

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from ..datasets.resampling import resize
from ..datasets.seeded_data import CROPS, generators_kept, seed_generators
from ..errors import SetupError
from ..transforms import TwoViewRandomResizedCrop
from .cache import UNREADABLE, image_check, open_arrays, read_header


class FixedCrops:
    """The crops of a cache: each depends only on seed, image index and crop number."""

    def __init__(self, crop: dict, seed: int):
        self.two_views, self.seed = TwoViewRandomResizedCrop(**crop), seed

    def view(self, results: dict, number: int, which: int) -> np.ndarray:
        """Draw the view (H, W, 3) of a crop: `which` is 0 for the student, 1 for the tokenizer."""
        with generators_kept():
            seed_generators(CROPS, self.seed, results['sample_idx'], number)
            crop = self.two_views.draw(results['img'])
        return resize(crop, *self.two_views.targets[which], self.two_views.backend)


@TRANSFORMS.register_module()
class CachedTargetsCrop(BaseTransform):
    """Draws one of an image's fixed crops and reads its targets.

    results['img'] becomes [student view uint8 (H, W, 3), record int16 (L, 2k + 1)], the second for
    `CachedTokenizer`. Sizes, scale and flips are those of the cache; load images the same way as
    when it was built.

    Args:
        cache: folder built by tools/cache_targets.py.
    """

    def __init__(self, cache: str):
        open_arrays(cache)  # fails early
        header = read_header(cache)
        self.cache, self.num_crops = cache, header.num_crops
        self.crops = FixedCrops(header.crop, header.seed)

    @staticmethod
    def crop_of(cache: str) -> dict:
        """Return the arguments of the `TwoViewRandomResizedCrop` that a cache was built with."""
        return read_header(cache).crop

    def transform(self, results: dict) -> dict:
        """Replace the image; OSError if it was unreadable when the cache was built."""
        records, images = open_arrays(self.cache)
        index, number = results['sample_idx'], int(np.random.randint(self.num_crops))
        check = int(images[index]) if index < len(images) else None
        if check == UNREADABLE:
            raise OSError(errno.EIO, 'unreadable when targets were cached', results['img_path'])
        if check != image_check(results['img_path'], results['img'].shape[:2]):
            raise SetupError(
                f'image {index}, {results["img_path"]}, differs in name or size from the one in '
                f'{self.cache}: the cache was built from other data'
            )
        view = self.crops.view(results, number, 0)
        results['img'] = [view, torch.from_numpy(np.array(records[index, number]))]
        results['img_shape'] = view.shape[:2]
        return results
