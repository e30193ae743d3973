"""Pretraining config -> cached targets: the tokenizer's best codes for each image's fixed crops."""

import errno
import inspect
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..datasets.bad_samples import OUTAGES
from ..datasets.images import BadImageError
from ..fileio.atomic_files import remove_leftovers
from ..head import MCBEiTHead
from ..targets import soft_probs
from ..tokenizers.base import check_tokens
from ..transforms import TwoViewRandomResizedCrop
from .cache import IMAGES, TARGETS, UNREADABLE, Header, decode, encode, image_check
from .crops import FixedCrops

GIB = 2**30
REPORT_SECONDS = 30


class TokenizerViews(Dataset):
    """Index -> `image_check` and the tokenizer's views (C, 3, H, W) uint8 of all C crops; of an
    unreadable image UNREADABLE and blank views.

    Args:
        images: data set whose pipeline loads images and does nothing else.
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
        ValueError: the data set has no two-view crop, or draws more at random than flip and crop
            before it; or tau changes during training and not all codes are kept.
    """

    def __init__(
        self,
        cfg: Config,
        k: int | None = None,
        num_crops: int = 1,
        seed: int = 0,
        device: str = 'cpu',
    ):
        model, data = cfg.model, cfg.train_dataloader.dataset
        loading, crop = split_pipeline(data.get('pipeline') or [])
        images = DATASETS.build(dict(data, pipeline=loading))
        self.views = TokenizerViews(images, FixedCrops(crop, seed), num_crops)
        self.tokenizer = MODELS.build(model.target_generator).to(device)
        self.tokenizer.precision = model.get('tokenizer_precision', 'fp32')
        self.tokenizer.compiled = model.get('compile_tokenizer', False)
        self.preprocessor = MODELS.build(model.data_preprocessor).to(device)
        stride, vocab_size = self.tokenizer.stride, self.tokenizer.vocab_size
        grid = tuple(side // stride for side in self.views.size)
        check_tokens(self.views.size, stride, grid)
        k = vocab_size if k is None else k
        hooks = cfg.get('custom_hooks') or []
        if k < vocab_size and any(hook.type == 'TauWarmupHook' for hook in hooks):
            raise ValueError('TauWarmupHook changes tau, k codes serve only one: keep all codes')
        tau = model.head.get('tau', inspect.signature(MCBEiTHead).parameters['tau'].default)
        identity = self.tokenizer.identity | dict(precision=self.tokenizer.precision)
        sizes = dict(grid=grid, k=k, num_images=len(images), num_crops=num_crops)
        self.header = Header(
            vocab_size, stride, tau=float(tau), seed=seed, crop=crop, tokenizer=identity, **sizes
        )

    def token_logits(self, views: Tensor) -> Tensor:
        """Logits (N, V, h, w) of views (N, 3, H, W) uint8."""
        batch = dict(inputs=[views, views], data_samples=None)
        return self.tokenizer(self.preprocessor(batch)['inputs'][1])

    def build(
        self,
        out: Path,
        batch_size: int = 16,
        num_workers: int = 0,
        report: Callable[[str], object] = print,
    ) -> int:
        """Write the cache, from the start after an interruption; return the number of unreadable
        images.

        Raises:
            FileExistsError: the folder holds anything else than an unfinished cache.
            OSError: the disk is too small.
        """
        header, checks, last = self.header, [], time.monotonic()
        size = 2 * math.prod(header.shape)
        report(f'{header.num_images:,} images x {header.num_crops} crops: {size / GIB:.2f} GiB')
        make_room(out, size)
        layout = dict(descr='<i2', fortran_order=False, shape=header.shape)
        loader = DataLoader(self.views, batch_size, num_workers=num_workers)
        with open(out / TARGETS, 'wb') as file:
            np.lib.format.write_array_header_1_0(file, layout)
            for found, views in loader:
                records = encode(self.token_logits(views.flatten(0, 1)), header.k, header.tau)
                file.write(records.cpu().numpy())
                checks += found.tolist()
                if time.monotonic() - last > REPORT_SECONDS or len(checks) == header.num_images:
                    last = time.monotonic()
                    report(f'{len(checks):,}/{header.num_images:,} images')
        np.save(out / IMAGES, np.array(checks, np.uint32))
        header.write(out)
        return checks.count(UNREADABLE)

    def compare(self, ks: Sequence[int], num_images: int = 64) -> str:
        """Table of size and exactness per k, measured on first crops of evenly spaced images."""
        header = self.header
        chosen = np.linspace(0, len(self.views) - 1, min(num_images, len(self.views))).astype(int)
        samples = (self.views[index] for index in chosen.tolist())
        views = [views[:1] for check, views in samples if check != UNREADABLE]
        if not views:
            raise ValueError(f'none of {len(chosen)} images is readable')
        # One by one: in double precision an image takes tens of MB.
        logits = map(self.token_logits, views)
        found = np.mean([[fidelity(x, k, header.tau) for k in ks] for x in logits], axis=0)
        lines = [f'{header.num_images:,} images x {header.num_crops} crops, tau {header.tau:g}']
        columns = 'k', 'KiB per crop', 'GiB in all', 'mass kept', 'KL (nats)', 'other best code'
        lines.append(''.join(f'{column:<16}' for column in columns))
        for k, (mass, kl, changed) in zip(ks, found, strict=True):
            shape = replace(header, k=k).shape
            sizes = f'{k:<16}{math.prod(shape[2:]) / 512:<16.1f}{math.prod(shape) * 2 / GIB:<16.3g}'
            lines.append(f'{sizes}{mass:<16.4f}{kl:<16.2e}{changed:.3%}')
        return '\n'.join(lines)


def make_room(out: Path, size: int) -> None:
    """Make a folder, or empty that of an unfinished cache; check that `size` bytes are free."""
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    if {file.name for file in out.iterdir()} - {TARGETS, IMAGES}:
        raise FileExistsError(f'{out} is not empty: choose another folder')
    for file in out.iterdir():
        file.unlink()
    if size > shutil.disk_usage(out).free:
        raise OSError(errno.ENOSPC, f'no space for {size / GIB:.2f} GiB', str(out))


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
        if name == 'RandomFlip' and set(settings) == {'prob'}:
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
        'config; of concatenated or repeated data sets, cache each one'
    )


def fidelity(token_logits: Tensor, k: int, tau: float) -> tuple[float, float, float]:
    """Means over tokens: probability of the k kept codes, KL of the cached probabilities from the
    exact ones in nats, share of changed best codes.
    """
    _, vocab_size, *grid = token_logits.shape
    cached_logits = decode(encode(token_logits, k, tau), vocab_size, grid)
    exact = soft_probs(token_logits.double(), tau)
    cached = soft_probs(cached_logits.double(), tau)
    mass = exact.topk(k, dim=-1).values.sum(-1).mean()
    kl = torch.where(exact > 0, exact * (exact.log() - cached.log()), 0.0).sum(-1).mean()
    changed = (cached_logits.argmax(1) != token_logits.argmax(1)).double().mean()
    return mass.item(), kl.item(), changed.item()
