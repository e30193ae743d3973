"""Fixed crops of an image, whose targets a cache holds."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from ..datasets.resampling import resize
from ..datasets.seeded_data import CROPS, generators_kept, seed_generators
from ..transforms import TwoViewRandomResizedCrop
from .cache import image_check, open_cache


class FixedCrops(BaseTransform):
    """Base of what works on the crops of a target cache: the same ones in every epoch.

    Crop `number` of an image hangs on the cache's seed, the image's index and the number alone.
    """

    def __init__(self, crop: dict, seed: int):
        self.two_views, self.seed = TwoViewRandomResizedCrop(**crop), seed

    def view(self, results: dict, number: int, which: int) -> np.ndarray:
        """A view of one crop: `which` 0 is the student's, 1 the tokenizer's."""
        with generators_kept():
            seed_generators(CROPS, self.seed, results['sample_idx'], number)
            crop = self.two_views.draw(results['img'])
        return resize(crop, *self.two_views.targets[which], self.two_views.backend)


@TRANSFORMS.register_module()
class CachedTargetsCrop(FixedCrops):
    """Take one of an image's fixed crops at random: results['img'] becomes [student view uint8
    (H, W, 3), record uint8 (bytes,)], the second for `CachedTokenizer`.

    Sizes, scale and flips are those that the cache was made with. The loading before it must be
    the same, too.

    Args:
        cache: its folder, see tools/cache_targets.py.
    """

    def __init__(self, cache: str):
        self.cache = open_cache(cache)
        super().__init__(self.cache.plan.crop, self.cache.plan.seed)

    @staticmethod
    def crop_of(cache: str) -> dict:
        """Arguments of the crop that a cache was made with, see `TwoViewRandomResizedCrop`."""
        return open_cache(cache).plan.crop

    def transform(self, results: dict) -> dict:
        """Replace the image; SetupError if the cache is of other data."""
        number = int(np.random.randint(self.cache.plan.num_crops))
        check = image_check(results['img_path'], results['img'].shape[:2])
        record = self.cache.read(results['sample_idx'], number, check)
        results['img'] = [self.view(results, number, 0), record]
        results['img_shape'] = self.two_views.targets[0][0]
        return results
