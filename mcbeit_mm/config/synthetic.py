"""Random training batches in the format of each library's models, for dry runs."""

import numpy as np
import torch
from torch import nn

NUM_OBJECTS = 100  # COCO's most crowded photos: enough positives to fill box and mask heads


def training_batch(model: nn.Module, batch_size: int, size: tuple[int, int]) -> dict:
    """Arguments of `model(..., mode='loss')` for preprocessed images of (H, W) pixels.

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

    labels = torch.randint(model.head.num_classes, (len(images),))
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    if not getattr(model.head, 'cal_acc', False):  # mixing gives scores
        scores = torch.nn.functional.one_hot(labels, model.head.num_classes).float()
        for sample, score in zip(samples, scores, strict=True):
            sample.set_gt_score(score)
    return dict(inputs=images, data_samples=samples)


def _segmentation(model: nn.Module, images: torch.Tensor) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = tuple(images.shape[-2:])
    samples = []
    for _ in images:
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        labels = torch.randint(model.decode_head.num_classes, (1, *size))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def _detection(model: nn.Module, images: torch.Tensor) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    size = height, width = tuple(images.shape[-2:])
    head = model.roi_head.bbox_head
    num_classes = (head[0] if isinstance(head, nn.ModuleList) else head).num_classes
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    samples = []
    for _ in images:
        corner, extent = torch.rand(NUM_OBJECTS, 2) * 0.7, torch.rand(NUM_OBJECTS, 2) * 0.2 + 0.1
        boxes = torch.cat([corner, corner + extent], dim=1)
        masks = np.ones((NUM_OBJECTS, height, width), dtype=np.uint8)
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(
            bboxes=boxes * torch.tensor([width, height, width, height]),
            labels=torch.randint(num_classes, (NUM_OBJECTS,)),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)
