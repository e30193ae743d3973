"""k-NN and linear-probe accuracy of every block of a frozen backbone on an image folder.

Masked image modeling has its most separable features in intermediate blocks; the last one serves
token prediction (unilm#419 reports 2-20 % for BEiT there). So all blocks are measured, and the
block to quote is chosen on held-out training images, never on the test set.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import CenterCrop, Normalize
from mmengine.dataset import DefaultSampler, default_collate
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.transforms import PackInputs, ResizeEdge
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets.images import LoadCheckedImage

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ELEMENTS = 2**26  # of a chunk of a similarity or logit matrix: 256 MiB in fp32


def folder_datasets(
    root: str | Path,
    img_size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    to_rgb: bool = True,
    max_train: int | None = None,
) -> list[CustomDataset]:
    """Build train and val set of an image folder: resize to 256 / 224 of the crop, center crop.

    `root` has train/ and val/ with one sub-folder per class. `img_size` is a side or (H, W) in
    pixels; `mean` and `std` are per channel in 0..255. `max_train` images are spread evenly over
    the training set. FileNotFoundError if a folder is missing; ValueError if it has no images or
    the classes differ.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    short_side = round(max(height, width) * 256 / 224)
    pipeline = [
        LoadCheckedImage(),
        ResizeEdge(short_side, backend='pillow', interpolation='bicubic'),
        CenterCrop((width, height)),
        Normalize(mean, std, to_rgb=to_rgb),
        PackInputs(),
    ]
    datasets = []
    for folder in (Path(root) / 'train', Path(root) / 'val'):
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}, expected one with a sub-folder per class')
        try:
            datasets.append(CustomDataset(data_root=str(folder), pipeline=pipeline))
        except RuntimeError as error:  # mmpretrain found no files
            raise ValueError(f'no images in the class folders of {folder}') from error
    train, val = datasets
    if differ := sorted(set(train.CLASSES) ^ set(val.CLASSES)):
        raise ValueError(f'{root}: train/ and val/ differ in the class folders {differ[:5]}')
    if max_train is not None and max_train < len(train):
        train.get_subset_(np.linspace(0, len(train) - 1, max_train).round().astype(int).tolist())
    return datasets


def ordered_loader(dataset: CustomDataset, batch_size: int, num_workers: int) -> DataLoader:
    """Return a loader in data set order, sharded over the ranks of a distributed run."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=DefaultSampler(dataset, shuffle=False, seed=0),
        num_workers=num_workers,
        collate_fn=default_collate,
        pin_memory=torch.cuda.is_available(),
    )


@contextmanager
def _returning(backbone: nn.Module, layers: tuple[int, ...]) -> Iterator[None]:
    """Return these blocks in eval mode; restore the backbone afterwards."""
    modes = [(module, module.training) for module in backbone.modules()]
    out_indices = backbone.out_indices
    backbone.out_indices = layers
    backbone.eval()
    try:
        yield
    finally:
        backbone.out_indices = out_indices
        for module, training in modes:
            module.training = training


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    loader: DataLoader,
    device: torch.device | str,
    layers: Sequence[int] | None = None,
    bf16: bool = False,
) -> dict[str, Tensor]:
    """Extract the mean patch token of unmasked images after each block, in one pass.

    `backbone` is an MCBEiTViT with `out_type='raw'` on `device`; the final norm applies to its
    last block. `loader` yields mmpretrain's batches: normalized inputs (B, 3, H, W), data_samples
    with labels. `layers` are block indices, negative from the end; None selects all.
    Returns feats (num_layers, N, D) fp32, blocks ascending, and labels (N,) int64, on the CPU.
    """
    depth = backbone.num_layers
    layers = range(depth) if layers is None else layers
    if wrong := [i for i in layers if not -depth <= i < depth]:
        raise ValueError(f'layers {wrong} are not among the {depth} blocks, 0 to {depth - 1}')
    if backbone.out_type != 'raw':
        raise ValueError(f"features need a backbone with out_type='raw', got {backbone.out_type!r}")
    feats, labels = [], []
    with _returning(backbone, tuple(sorted({i % depth for i in layers}))):
        for batch in loader:
            images = batch['inputs'].to(device, non_blocking=True)
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
                outs = backbone(images)
            pooled = [out[:, 1:].mean(1, dtype=torch.float32) for out in outs]
            feats.append(torch.stack(pooled).cpu())
            labels.append(torch.cat([sample.gt_label for sample in batch['data_samples']]))
    return dict(feats=torch.cat(feats, 1), labels=torch.cat(labels))


@torch.no_grad()
def knn_accuracy(
    train_feats: Tensor,
    train_labels: Tensor,
    test_feats: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Compute k-NN accuracy in percent, with votes weighted by exp(cosine / temperature).

    Weights as in InstDisc and DINO. Features are (N, D) and (M, D), labels (N,) and (M,), on the
    device to compute on; the N x M similarities are computed in chunks. ValueError unless k is in
    [1, N].
    """
    if not 1 <= k <= len(train_feats):
        raise ValueError(f'k must be in [1, {len(train_feats)}], the training images; got {k}')
    bank = F.normalize(train_feats.float(), dim=1)
    num_classes, rows = int(train_labels.max()) + 1, max(1, MAX_ELEMENTS // len(bank))
    correct = 0
    for feats, labels in zip(test_feats.split(rows), test_labels.split(rows), strict=True):
        cosine, nearest = (F.normalize(feats.float(), dim=1) @ bank.T).topk(k, dim=1)
        # fp64: the order of a GPU's additions must not matter
        weights = (cosine.double() / temperature).exp()
        votes = weights.new_zeros(len(feats), num_classes)
        votes.scatter_add_(1, train_labels[nearest], weights)
        correct += (votes.argmax(1) == labels).sum().item()
    return 100 * correct / len(test_labels)


def fit_logistic(
    feats: Tensor, labels: Tensor, num_classes: int, strength: float, max_iter: int = 500
) -> nn.Linear:
    """Minimize mean cross-entropy + strength / 2 * |weight|^2 over feats (N, D) by LBFGS from zero.

    The bias is not penalized, as in scikit-learn's LogisticRegression(C=1 / (strength * N)).
    """
    model = nn.Linear(feats.shape[1], num_classes, device=feats.device, dtype=feats.dtype)
    for param in model.parameters():
        nn.init.zeros_(param)
    solver = torch.optim.LBFGS(
        model.parameters(), max_iter=max_iter, tolerance_grad=1e-6, line_search_fn='strong_wolfe'
    )
    rows = max(1, MAX_ELEMENTS // num_classes)

    def closure() -> Tensor:
        solver.zero_grad()
        total = strength / 2 * model.weight.square().sum()
        total.backward()
        for x, y in zip(feats.split(rows), labels.split(rows), strict=True):
            loss = F.cross_entropy(model(x), y, reduction='sum') / len(feats)
            loss.backward()
            total = total.detach() + loss.detach()
        return total

    solver.step(closure)
    return model


def held_out_split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split labels (N,) into fixed indices of nine tenths and one tenth, stratified by class."""
    if len(labels) < 10:
        raise ValueError(f'holding out a tenth needs 10 or more training images, got {len(labels)}')
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels.cpu()[order].argsort(stable=True)].to(labels.device)
    held_out = torch.arange(len(order), device=order.device) % 10 == 5
    return order[~held_out], order[held_out]


def linear_probe(
    train_feats: Tensor,
    train_labels: Tensor,
    test_feats: Tensor,
    test_labels: Tensor,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[float, float, float]:
    """Fit logistic regression on features (N, D) standardized by the training set.

    The L2 strength is the best on a held-out tenth of the training set (the first if tied); the
    classifier is then refitted on all of it. Returns the accuracies on the test and the held-out
    set in percent, and the strength.
    """
    num_classes = int(train_labels.max()) + 1

    def accuracy(strength: float, fit: tuple[Tensor, ...], test: tuple[Tensor, ...]) -> float:
        std, mean = torch.std_mean(fit[0], dim=0, correction=0)
        std = torch.where(std > 0, std, 1)
        model = fit_logistic((fit[0] - mean) / std, fit[1], num_classes, strength)
        with torch.no_grad():
            predicted = model((test[0] - mean) / std).argmax(1)
        return 100 * (predicted == test[1]).double().mean().item()

    parts = [(train_feats[i], train_labels[i]) for i in held_out_split(train_labels)]
    held_out = [accuracy(strength, *parts) for strength in strengths]
    best = int(np.argmax(held_out))
    score = accuracy(strengths[best], (train_feats, train_labels), (test_feats, test_labels))
    return score, held_out[best], strengths[best]


def score_layers(
    train: dict[str, Tensor], test: dict[str, Tensor], k: int, device: torch.device | str
) -> list[dict[str, float]]:
    """Score each block of two `extract_features` results by k-NN and probe, test and held-out."""
    labels, test_labels = train['labels'].to(device), test['labels'].to(device)
    parts = held_out_split(labels)
    scores = []
    for feats, test_feats in zip(train['feats'], test['feats'], strict=True):
        feats, test_feats = feats.to(device), test_feats.to(device)
        knn = knn_accuracy(feats, labels, test_feats, test_labels, k)
        knn_held_out = knn_accuracy(*(x[i] for i in parts for x in (feats, labels)), k)
        probe = linear_probe(feats, labels, test_feats, test_labels)
        names = ('linear', 'linear_held_out', 'linear_strength')
        scores.append(
            dict(knn=knn, knn_held_out=knn_held_out, **dict(zip(names, probe, strict=True)))
        )
    return scores
