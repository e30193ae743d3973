"""Pretraining config -> cached targets: the tokenizer's word on fixed crops of every image."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..datasets.bad_samples import OUTAGES
from ..datasets.images import BadImageError
from ..fileio.atomic_files import remove_leftovers, write_atomically
from ..head import MCBEiTHead
from ..tokenizers.base import Tokenizer, check_tokens
from ..transforms import TwoViewRandomResizedCrop
from .cache import HEAD, MANIFEST, NO_IMAGE, UNFINISHED, CachePlan, file_name, image_check
from .crops import FixedCrops
from .records import Fidelity, RecordFormat, encode, fidelity

FILE_BYTES = 2**28  # what a stopped run loses at most
MEASURED = 16  # images that a cache's fidelity is measured on
Report = Callable[[str], None]


class CropViews(FixedCrops):
    """Image -> the tokenizer's views of all its crops, (C, 3, H, W) uint8, and its check."""

    def __init__(self, crop: dict, seed: int, num_crops: int):
        super().__init__(crop, seed)
        self.num_crops = num_crops

    def transform(self, results: dict) -> tuple[int, Tensor]:
        """Load nothing, draw all crops."""
        views = [self.view(results, number, 1) for number in range(self.num_crops)]
        views = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        return image_check(results['img_path'], results['img'].shape[:2]), views


class ReadableViews(Dataset):
    """A data set of `CropViews`, with blank views and no check for images that cannot be read."""

    def __init__(self, dataset: BaseDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        try:
            return self.dataset[index]
        except (BadImageError, OSError) as error:
            if isinstance(error, OSError) and error.errno in OUTAGES:
                raise
            views = self.dataset.pipeline.transforms[-1]
            size, _ = views.two_views.targets[1]
            return NO_IMAGE, torch.zeros(views.num_crops, 3, *size, dtype=torch.uint8)


class CacheBuilder:
    """Makes the cache of a pretraining config: its data, views, tokenizer and tau.

    Args:
        k: codes kept per token, None for all.
        num_crops: crops per image.
        dtype: 'float16' or 'float32', of the kept logits.

    Raises:
        ValueError: the config draws more at random than flip and crop before the views, its data
            set gives images no fixed number, or tau is not constant.
    """

    def __init__(
        self,
        cfg: Config,
        k: int | None,
        num_crops: int = 1,
        dtype: str = 'float16',
        seed: int = 0,
        device: str = 'cpu',
    ):
        if num_crops < 1:
            raise ValueError(f'the number of crops is {num_crops}, expected 1 or more')
        loading, crop = split_pipeline(cfg.train_dataloader.dataset.get('pipeline') or [])
        views = CropViews(crop, seed, num_crops)
        dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[*loading, views]))
        if not isinstance(dataset, BaseDataset):
            raise ValueError(
                f'{type(dataset).__name__} gives its images no fixed number: cache the data sets '
                'within, one by one'
            )
        self.dataset = ReadableViews(dataset)
        self.tokenizer = load_tokenizer(cfg).to(device)
        self.preprocessor = MODELS.build(cfg.model.data_preprocessor).to(device)
        (size, _), stride = views.two_views.targets[1], self.tokenizer.stride
        grid = size[0] // stride, size[1] // stride
        check_tokens(size, stride, grid)
        vocab_size = self.tokenizer.vocab_size
        kept = vocab_size if k is None else k
        tau = tau_of(cfg, all_codes=kept == vocab_size)
        record = RecordFormat(vocab_size, grid, kept, tau, dtype).check()
        image_bytes = num_crops * (record.num_bytes + HEAD.size)
        self.plan = CachePlan(
            record,
            num_images=len(dataset),
            num_crops=num_crops,
            seed=seed,
            images_per_file=max(1, FILE_BYTES // image_bytes),
            stride=stride,
            crop=crop,
            tokenizer=self.tokenizer.identity | dict(precision=self.tokenizer.precision),
        )

    def token_logits(self, views: Tensor) -> Tensor:
        """Logits (N, V, h, w) of views (N, 3, H, W) uint8."""
        batch = dict(inputs=[views, views], data_samples=None)
        return self.tokenizer(self.preprocessor(batch)['inputs'][1])

    def measure(self, formats: Sequence[RecordFormat], images: int = MEASURED) -> list[Fidelity]:
        """How well formats keep the logits of evenly spaced images' first crops."""
        chosen = np.linspace(0, len(self.dataset) - 1, min(images, len(self.dataset))).astype(int)
        samples = (self.dataset[index] for index in chosen.tolist())
        views = [views[:1] for check, views in samples if check != NO_IMAGE]
        if not views:
            raise ValueError(f'none of {len(chosen)} images could be read')
        # One by one: in double precision an image takes 40 MB a copy.
        found = [[fidelity(self.token_logits(v), f) for f in formats] for v in views]
        return [Fidelity(*np.mean(column, axis=0).tolist()) for column in zip(*found, strict=True)]

    def build(
        self, out: Path, batch_size: int, num_workers: int = 0, report: Report = print
    ) -> int:
        """Write the cache into a folder, or what it still lacks; the number of unreadable images.

        Raises:
            ValueError: the folder holds a cache of other settings.
        """
        begin(out, self.plan)
        plan, unreadable = self.plan, 0
        numbers = [n for n in range(plan.num_files) if not (out / file_name(n)).exists()]
        batches = {n: list(_batches(plan.images_of(n), batch_size)) for n in numbers}
        order = list(chain.from_iterable(batches.values()))
        samples = iter(DataLoader(self.dataset, batch_sampler=order, num_workers=num_workers))
        for done, number in enumerate(numbers, start=1):
            content = bytearray()
            for _ in batches[number]:
                checks, views = next(samples)
                unreadable += int((checks == NO_IMAGE).sum())
                content += self._records(checks, views)
            write_atomically(out / file_name(number), content)
            report(f'{done}/{len(numbers)} files, {plan.images_of(number).stop:,} images')
        (kept,) = self.measure([plan.record])
        write_atomically(out / MANIFEST, plan.as_json(fidelity=kept._asdict()))
        (out / UNFINISHED).unlink()
        return unreadable

    def _records(self, checks: Tensor, views: Tensor) -> bytes:
        records = encode(self.token_logits(views.flatten(0, 1)), self.plan.record).cpu().numpy()
        checks, parts = checks.repeat_interleave(self.plan.num_crops), []
        for check, record in zip(checks, records, strict=True):
            body = HEAD.pack(0, int(check))[4:] + record.tobytes()
            parts += [crc32(body).to_bytes(4, 'little'), body]
        return b''.join(parts)


def begin(out: Path, plan: CachePlan) -> None:
    """Make a folder for a cache, or take up an unfinished one of the same plan.

    Raises:
        FileExistsError: it holds a finished cache, or anything else.
        ValueError: it holds an unfinished cache of another plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    if (out / UNFINISHED).is_file():
        if (out / UNFINISHED).read_text() != plan.as_json():
            raise ValueError(
                f'{out} holds an unfinished cache of other settings: choose another folder, or '
                'remove it'
            )
    elif any(out.iterdir()):
        what = 'a finished cache' if (out / MANIFEST).is_file() else 'other files'
        raise FileExistsError(f'{out} holds {what}: choose another folder, or remove it')
    else:
        write_atomically(out / UNFINISHED, plan.as_json())


def split_pipeline(pipeline: Sequence[dict]) -> tuple[list[dict], dict]:
    """The steps that load an image, and all arguments of the two-view crop, a flip before it
    included.

    Raises:
        ValueError: no such crop, or another step before it that may draw at random.
    """
    loading: list[dict] = []
    flip = None
    for step in pipeline:
        name = getattr(step['type'], '__name__', step['type'])
        if name == 'TwoViewRandomResizedCrop':
            bound = inspect.signature(TwoViewRandomResizedCrop).bind(
                **{key: value for key, value in step.items() if key != 'type'}
            )
            bound.apply_defaults()
            crop = dict(bound.arguments)
            if flip is not None:
                crop['flip_prob'] = flip
            return loading, crop
        if name == 'RandomFlip' and set(step) == {'type', 'prob'} and flip is None:
            flip = step['prob']
        elif name.startswith('Load') and flip is None:
            loading.append(step)
        else:
            raise ValueError(
                f'{name} comes before the two-view crop: targets can be cached after '
                'loading, RandomFlip(prob=...) and TwoViewRandomResizedCrop only'
            )
    raise ValueError('the config has no TwoViewRandomResizedCrop: is it one of pretraining?')


def load_tokenizer(cfg: Config) -> Tokenizer:
    """The tokenizer of a pretraining config, with its precision."""
    tokenizer = MODELS.build(cfg.model.target_generator)
    tokenizer.precision = cfg.model.get('tokenizer_precision', 'fp32')
    tokenizer.compiled = cfg.model.get('compile_tokenizer', False)
    return tokenizer


def tau_of(cfg: Config, all_codes: bool) -> float:
    """The head's tau; ValueError if it changes in training and not all codes are kept."""
    hooks = cfg.get('custom_hooks') or []
    if not all_codes and any(hook.type == 'TauWarmupHook' for hook in hooks):
        raise ValueError('TauWarmupHook changes tau, the codes left out are kept for one: keep all')
    default = inspect.signature(MCBEiTHead).parameters['tau'].default
    return float(cfg.model.head.get('tau', default))


def _batches(images: range, size: int) -> Iterator[list[int]]:
    return (list(images[start : start + size]) for start in range(0, len(images), size))
