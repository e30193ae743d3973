"""Random training batches in the format of each library's models, for dry runs."""

import numpy as np
import torch
from torch import nn

NUM_OBJECTS = 100  # COCO's most crowded photos: enough positives to fill box and mask heads


def training_batch(model: nn.Module, batch_size: int, size: tuple[int, int]) -> dict:
    """Return arguments of `model(..., mode='loss')` for preprocessed images of (H, W) pixels.

    Supports mc-BEiT pretraining, tokenizer training, mmpretrain's classifiers, mmseg's segmentors
    and mmdet's two-stage detectors; raises ValueError for other models.
    """
    images = torch.rand(batch_size, 3, *size)
    if hasattr(model, 'vqgan'):
        return dict(inputs=images, data_samples=None)
    if hasattr(model, 'tokenizer'):
        return _pretraining(model, images)
    if hasattr(model, 'roi_head'):
        return _detection(model, images)
    if hasattr(model, 'decode_head'):
        return _segmentation(model, images)
    if hasattr(model, 'head') and hasattr(model.head, 'num_classes'):
        return _classification(model, images)
    raise ValueError(f'no synthetic batch for a {type(model).__name__}')


def _pretraining(model: nn.Module, images: torch.Tensor) -> dict:
    from mmpretrain.structures import DataSample

    grid = model.backbone.patch_grid(*images.shape[-2:])
    views = [images, model.tokenizer.random_view(len(images), grid)]
    mask = torch.zeros(grid, dtype=torch.bool).flatten()
    mask[: round(0.75 * mask.numel())] = True  # the authors' ratio
    return dict(inputs=views, data_samples=[DataSample(mask=mask.view(grid)) for _ in images])


def _classification(model: nn.Module, images: torch.Tensor) -> dict:
    from mmpretrain.structures import DataSample

    number = model.head.num_classes
    labels = torch.randint(number, (len(images),))
    samples = [DataSample().set_gt_label(label) for label in labels]
    if not getattr(model.head, 'cal_acc', False):  # Mixup and CutMix give scores
        for sample, label in zip(samples, labels, strict=True):
            sample.set_gt_score(nn.functional.one_hot(label, number).float())
    return dict(inputs=images, data_samples=samples)


def _segmentation(model: nn.Module, images: torch.Tensor) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = tuple(images.shape[-2:])
    samples = [SegDataSample(metainfo=dict(img_shape=size, ori_shape=size)) for _ in images]
    for sample in samples:
        labels = torch.randint(model.decode_head.num_classes, (1, *size))
        sample.gt_sem_seg = PixelData(data=labels)
    return dict(inputs=images, data_samples=samples)


def _detection(model: nn.Module, images: torch.Tensor) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = height, width = tuple(images.shape[-2:])
    head = model.roi_head.bbox_head
    num_classes = (head[0] if isinstance(head, nn.ModuleList) else head).num_classes
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    samples = [DetDataSample(metainfo=meta) for _ in images]
    for sample in samples:
        corner, extent = torch.rand(NUM_OBJECTS, 2) * 0.7, torch.rand(NUM_OBJECTS, 2) * 0.2 + 0.1
        boxes = torch.cat([corner, corner + extent], dim=1)
        masks = np.ones((NUM_OBJECTS, height, width), dtype=np.uint8)
        sample.gt_instances = InstanceData(
            bboxes=boxes * torch.tensor([width, height, width, height]),
            labels=torch.randint(num_classes, (NUM_OBJECTS,)),
            masks=BitmapMasks(masks, height, width),
        )
    return dict(inputs=images, data_samples=samples)
