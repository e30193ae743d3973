"""Large-scale jitter in training; test-time boxes and masks in original pixels."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
import cv2
from config_files import load
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope

import mcbeit_mm.detection  # noqa: F401  (registers the backbone)

CONFIG = 'mask-rcnn_mcbeit-vit-base-p16_fpn_32xb2-amp-lsj-25e_coco-1024x1024.py'
SIZES = [(240, 240), (300, 100), (101, 307), (333, 251), (1501, 499), (37, 641), (641, 37)]


@pytest.fixture(scope='module')
def cfg():
    return load(f'detection/{CONFIG}')


def write_image(path, height, width):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), image)


def sample(path, height, width, box):
    """A sample as CocoDataset gives it to the pipeline: one rectangle as a polygon."""
    x1, y1, x2, y2 = box
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    instance = dict(bbox=[x1, y1, x2, y2], bbox_label=0, mask=[polygon], ignore_flag=0)
    return dict(img_path=str(path), img_id=0, height=height, width=width, instances=[instance])


# --- training -----------------------------------------------------------------------------------


def test_training_images_are_exact_squares_with_boxes_of_the_cropped_masks(cfg, tmp_path):
    init_default_scope('mmdet')
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    shapes, objects = set(), []
    for height, width in SIZES[:4]:
        write_image(tmp_path / 'image.png', height, width)
        box = (width * 0.1, height * 0.2, width * 0.5, height * 0.7)
        for _ in range(4):
            packed = pipeline(sample(tmp_path / 'image.png', height, width, box))
            image = packed['inputs']
            shapes.add(tuple(image.shape[1:]))
            batch = dict(inputs=[image], data_samples=[packed['data_samples']])
            out = preprocess(batch, training=True)
            assert out['inputs'].shape == (1, 3, 1024, 1024)
            found = out['data_samples'][0].gt_instances
            assert found.masks.masks.shape[1:] == (1024, 1024)
            objects.append(len(found))
            h, w = image.shape[1:]
            assert not out['inputs'][0, :, h:].any() and not out['inputs'][0, :, :, w:].any()
            for mask, (x1, y1, x2, y2) in zip(found.masks.masks, found.bboxes, strict=True):
                ys, xs = mask.nonzero()
                extent = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert [x1, y1, x2, y2] == pytest.approx(extent)
    assert len(shapes) > 8 and all(max(shape) <= 1024 for shape in shapes)
    assert max(objects) == 1
    assert min(min(shape) for shape in shapes) < 400 and (1024, 1024) in shapes


def test_a_crop_without_objects_stays_in_training(cfg, tmp_path):
    init_default_scope('mmdet')
    steps = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    steps[2]['ratio_range'] = (2.0, 2.0)
    pipeline = Compose(steps)
    write_image(tmp_path / 'image.png', 240, 240)
    counts = [
        len(
            pipeline(sample(tmp_path / 'image.png', 240, 240, (0, 0, 90, 90)))[
                'data_samples'
            ].gt_instances
        )
        for _ in range(12)
    ]
    assert set(counts) == {0, 1}


def test_colors_are_rgb_with_imagenet_statistics(cfg):
    init_default_scope('mmdet')
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    blue = torch.zeros(3, 32, 48, dtype=torch.uint8)
    blue[0] = 255  # images are read as BGR
    pixel = preprocess(dict(inputs=[blue], data_samples=None))['inputs'][0, :, 0, 0]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(pixel, (torch.tensor([0.0, 0, 255]) - mean) / std)


# --- testing ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def detector(cfg):
    """The config's detector, returning the network boxes in `detector.boxes` with full masks."""
    from mmengine.structures import InstanceData

    init_default_scope('mmdet')
    config = copy.deepcopy(cfg.model)
    config.backbone.update(
        arch=dict(embed_dims=64, num_layers=4, num_heads=2, feedforward_channels=64),
        img_size=64,
        init_cfg=None,
    )
    config.neck.in_channels = [64] * 4
    model = MODELS.build(config).eval()
    model.boxes = None
    model.extract_feat = lambda x: tuple(torch.zeros(1, 256, 8, 8) for _ in range(5))
    model.rpn_head.predict = lambda *args, **kwargs: [
        InstanceData(bboxes=model.boxes, scores=torch.ones(len(model.boxes)))
    ]

    def box_head(feats):  # class 0 for sure, no displacement
        scores = torch.zeros(len(feats), 81)
        scores[:, 0] = 20
        return scores, torch.zeros(len(feats), 320)

    model.roi_head.bbox_head.forward = box_head
    model.roi_head.mask_head.forward = lambda feats: torch.full((len(feats), 80, 28, 28), 10.0)
    return model


def detect(cfg, detector, path, height, width, network_boxes):
    init_default_scope('mmdet')
    write_image(path, height, width)
    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    packed = pipeline(sample(path, height, width, (0, 0, 5, 5)))
    detector.boxes = torch.tensor(np.array(network_boxes), dtype=torch.float32)
    batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    with torch.no_grad():
        (result,) = detector.test_step(batch)
    assert result.batch_input_shape == (1024, 1024)
    return result.pred_instances


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_boxes_and_masks_are_in_original_pixels(cfg, detector, tmp_path, height, width):
    scale = 1024 / max(height, width)
    box = np.array([width * 0.25, height * 0.1, width * 0.8, height * 0.75])
    found = detect(cfg, detector, tmp_path / 'image.png', height, width, [box * scale])
    assert len(found) == 1
    # The authors divide by the larger of the two ratios, that of the long edge.
    assert found.bboxes[0].numpy() == pytest.approx(box, abs=1)
    truth = np.zeros((height, width), bool)
    x1, y1, x2, y2 = box.round().astype(int)
    truth[y1:y2, x1:x2] = True
    mask = found.masks[0].numpy()
    assert mask.shape == truth.shape
    iou = (mask & truth).sum() / (mask | truth).sum()
    thin = 1 / min(x2 - x1, y2 - y1)  # rounding to pixels costs up to one row and column
    assert iou > 1 - max(0.02, 1.5 * thin)


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_nothing_is_outside_the_original_image(cfg, detector, tmp_path, height, width):
    box = [[0, 0, 1024, 1024]]  # the whole square with its padding
    found = detect(cfg, detector, tmp_path / 'image.png', height, width, box)
    assert found.bboxes[0].numpy() == pytest.approx([0, 0, width, height], abs=0.01)
    assert found.masks.shape == (1, height, width)
    assert found.masks.float().mean() > 0.98  # pasting rounds the corners off
