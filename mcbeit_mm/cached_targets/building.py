"""Build cached targets from a pretraining config."""

import errno
import inspect
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS
from mmengine.utils import ProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..datasets.bad_samples import OUTAGES
from ..datasets.images import BadImageError
from ..fileio.atomic_files import remove_leftovers
from ..head import MCBEiTHead
from ..tokenizers.base import check_tokens
from ..transforms import TwoViewRandomResizedCrop
from .cache import IMAGES, TARGETS, UNREADABLE, Header, encode, image_check
from .crops import FixedCrops


class TokenizerViews(Dataset):
    """Maps an index to `image_check` and tokenizer views (crops, 3, H, W) uint8.

    An unreadable image gives UNREADABLE and blank views. The pipeline of `images` only loads.
    """

    def __init__(self, images: BaseDataset, crops: FixedCrops, num_crops: int):
        self.images, self.crops, self.num_crops = images, crops, num_crops
        self.size = crops.two_views.targets[1][0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        try:
            results = self.images[index]
        except (BadImageError, OSError) as error:
            if isinstance(error, OSError) and error.errno in OUTAGES:
                raise
            return UNREADABLE, torch.zeros(self.num_crops, 3, *self.size, dtype=torch.uint8)
        views = np.stack([self.crops.view(results, number, 1) for number in range(self.num_crops)])
        check = image_check(results['img_path'], results['img'].shape[:2])
        return check, torch.from_numpy(views).permute(0, 3, 1, 2)


class CacheBuilder:
    """Builds a cache from the data, views, tokenizer and tau of a pretraining config.

    Args:
        k: codes kept per token, None for all.

    Raises:
        ValueError: the pipeline cannot be cached, or tau changes in training and not all codes are
            kept.
    """

    def __init__(
        self, cfg: Config, k: int | None, num_crops: int = 1, seed: int = 0, device: str = 'cpu'
    ):
        model, data = cfg.model, cfg.train_dataloader.dataset
        loading, crop = split_pipeline(data.get('pipeline') or [])
        images = DATASETS.build(dict(data, pipeline=loading))
        self.views = TokenizerViews(images, FixedCrops(crop, seed), num_crops)
        self.tokenizer = MODELS.build(model.target_generator).to(device)
        self.tokenizer.precision = model.get('tokenizer_precision', 'fp32')
        self.tokenizer.compiled = model.get('compile_tokenizer', False)
        self.preprocessor = MODELS.build(model.data_preprocessor).to(device)
        vocab_size, stride = self.tokenizer.vocab_size, self.tokenizer.stride
        grid = tuple(side // stride for side in self.views.size)
        check_tokens(self.views.size, stride, grid)
        k = vocab_size if k is None else k
        hooks = cfg.get('custom_hooks') or []
        if k < vocab_size and any(hook.type == 'TauWarmupHook' for hook in hooks):
            raise ValueError('TauWarmupHook changes tau, k codes fit only one: keep all codes')
        tau = model.head.get('tau', inspect.signature(MCBEiTHead).parameters['tau'].default)
        identity = self.tokenizer.identity | dict(precision=self.tokenizer.precision)
        sizes = vocab_size, stride, grid, k, float(tau), len(images), num_crops
        self.header = Header(*sizes, seed, crop, identity)

    def token_logits(self, views: Tensor) -> Tensor:
        """Return logits (N, V, h, w) of views (N, 3, H, W) uint8."""
        batch = dict(inputs=[views, views], data_samples=None)
        return self.tokenizer(self.preprocessor(batch)['inputs'][1])

    def build(self, out: Path, batch_size: int = 16, num_workers: int = 0) -> int:
        """Write the cache, replacing an unfinished one; return the count of unreadable images."""
        header, checks = self.header, []
        make_room(out, 2 * math.prod(header.shape))
        layout = dict(descr='<i2', fortran_order=False, shape=header.shape)
        progress = ProgressBar(header.num_images)
        with open(out / TARGETS, 'wb') as file:
            np.lib.format.write_array_header_1_0(file, layout)
            for found, views in DataLoader(self.views, batch_size, num_workers=num_workers):
                records = encode(self.token_logits(views.flatten(0, 1)), header.k, header.tau)
                file.write(records.cpu().numpy())
                checks += found.tolist()
                progress.update(len(found))
        np.save(out / IMAGES, np.array(checks, np.uint32))
        header.write(out)
        return checks.count(UNREADABLE)


def make_room(out: Path, size: int) -> None:
    """Create a folder or clear an unfinished cache; check that `size` bytes are free."""
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    if {file.name for file in out.iterdir()} - {TARGETS, IMAGES}:
        raise FileExistsError(f'{out} is not empty: choose another folder')
    for file in out.iterdir():
        file.unlink()
    if size > shutil.disk_usage(out).free:
        raise OSError(errno.ENOSPC, f'no space for {size / 2**30:.2f} GiB', str(out))


def split_pipeline(pipeline: Sequence[dict]) -> tuple[list[dict], dict]:
    """Return the loading steps and all arguments of the two-view crop, including a flip before it.

    Raises:
        ValueError: no such crop, or another step before it that may draw at random.
    """
    loading, flip = [], {}
    for step in pipeline:
        name = getattr(step['type'], '__name__', step['type'])
        settings = {key: value for key, value in step.items() if key != 'type'}
        if name == 'TwoViewRandomResizedCrop':
            parameters = inspect.signature(TwoViewRandomResizedCrop).parameters.values()
            return loading, {p.name: p.default for p in parameters} | settings | flip
        if name == 'RandomFlip' and set(settings) == {'prob'} and not flip:
            flip = dict(flip_prob=settings['prob'])
        elif name.startswith('Load'):
            loading.append(step)
        else:
            raise ValueError(
                f'{name} precedes the two-view crop: targets can be cached after loading, '
                'RandomFlip(prob=...) and TwoViewRandomResizedCrop only'
            )
    raise ValueError(
        'the pipeline of the training data has no TwoViewRandomResizedCrop: use a pretraining '
        'config; cache concatenated or repeated data sets one by one'
    )
