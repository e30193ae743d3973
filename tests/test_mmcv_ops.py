"""The torchvision stand-in for mmcv's compiled ops, against slow references."""

import importlib
import importlib.util
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from math import ceil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mcbeit_mm import mmcv_ops

STAND_IN = mmcv_ops.install()
pytest.importorskip('mmcv')
ops = importlib.import_module('mmcv.ops')  # must not be skipped if mmcv is installed
needs_stand_in = pytest.mark.skipif(not STAND_IN, reason='mmcv has compiled ops')


# --- NMS ----------------------------------------------------------------------------------------


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)


def slow_nms(boxes, scores, threshold, offset=0):
    """Greedy NMS in float32, as mmcv's CPU kernel computes it."""
    boxes, scores = (np.asarray(x, dtype=np.float32) for x in (boxes, scores))
    threshold, kept = np.float32(threshold), []

    def area(x1, y1, x2, y2):
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    def iou(a, b):
        inter = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
        return inter / (area(*a) + area(*b) - inter)

    for i in np.argsort(-scores, kind='stable'):
        if all(iou(boxes[j], boxes[i]) <= threshold for j in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.7])
def test_nms_equals_the_slow_reference(offset, threshold):
    boxes, scores = random_boxes(200)
    expected = slow_nms(boxes, scores, threshold, offset)
    assert 1 < len(expected) < 200
    dets, keep = ops.nms(boxes, scores, threshold, offset=offset)
    assert keep.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], 1))


def test_nms_offset_changes_the_result():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])  # IoU 36/126 without, 50/150 with offset
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]


def test_nms_keeps_a_box_whose_iou_is_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])  # IoU float32(0.1) > double 0.1
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.1)[1].tolist() == [0, 1]


def test_nms_score_threshold_max_num_numpy_and_empty():
    boxes, scores = random_boxes(100)
    confident = (scores > 0.4).nonzero()[:, 0]
    expected = confident[slow_nms(boxes[confident], scores[confident], 0.5)][:7].tolist()
    dets, keep = ops.nms(boxes.numpy(), scores.numpy(), 0.5, score_threshold=0.4, max_num=7)
    assert isinstance(dets, np.ndarray) and keep.tolist() == expected
    dets, keep = ops.nms(boxes[:0], scores[:0], 0.5)
    assert dets.shape == (0, 5) and keep.dtype == torch.int64 and keep.shape == (0,)


@needs_stand_in
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_of_low_precision_boxes_is_computed_in_float32(dtype):
    boxes, scores = (x.to(dtype) for x in random_boxes(100))
    expected = slow_nms(boxes.float(), scores.float(), 0.5)
    kept = ops.nms(boxes, scores, 0.5)[1].tolist()
    # Equal scores are frequent in low precision; torchvision and the reference both sort stably.
    assert kept == expected


@pytest.mark.parametrize('split_thr', [10000, 50])
def test_batched_nms_suppresses_within_a_class_only(split_thr):
    boxes, scores = random_boxes(150, seed=1)
    labels = torch.arange(150) % 3
    kept = set()
    for label in range(3):
        members = (labels == label).nonzero()[:, 0]
        kept.update(members[slow_nms(boxes[members], scores[members], 0.4)].tolist())
    expected = sorted(kept, key=lambda i: -scores[i])
    config = dict(type='nms', iou_threshold=0.4, split_thr=split_thr)
    dets, keep = ops.batched_nms(boxes, scores, labels, config)
    assert keep.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], 1))
    agnostic = ops.batched_nms(boxes, scores, labels, dict(iou_threshold=0.4), class_agnostic=True)
    assert agnostic[1].tolist() == slow_nms(boxes, scores, 0.4) != expected


# --- RoIAlign -----------------------------------------------------------------------------------


SCALE, SIZE = 0.5, (3, 2)
ROIS = [  # batch index, x1, y1, x2, y2 in pixels of an image twice the size of the map
    [0, 2.3, 1.2, 15.1, 12.7],
    [1, 0.0, 0.0, 19.9, 13.9],
    [1, -7.0, -5.0, 9.0, 30.0],  # partly outside
    [0, 6.0, 6.0, 6.4, 6.9],  # smaller than a pixel
    [0, 5.0, 3.0, 5.0, 3.0],  # empty
    [1, 60.0, 60.0, 80.0, 80.0],  # outside
]


def slow_sample(feature_map, y, x):
    height, width = feature_map.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return feature_map[:, 0, 0] * 0
    y, x = (min(max(v, 0.0), n - 1.0) for v, n in ((y, height), (x, width)))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = feature_map[:, top, left] * (left + 1 - x) + feature_map[:, top, right] * (x - left)
    below = feature_map[:, bottom, left] * (left + 1 - x) + feature_map[:, bottom, right] * (
        x - left
    )
    return above * (top + 1 - y) + below * (y - top)


def slow_roi_align(x, rois, sampling_ratio, aligned):
    """RoIAlign by definition: the mean of bilinear samples in each bin."""
    pooled = []
    for index, *box in rois.tolist():
        x1, y1, x2, y2 = (v * SCALE - 0.5 * aligned for v in box)
        extents = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        bins = [extent / size for extent, size in zip(extents, SIZE, strict=True)]
        grid = [sampling_ratio or ceil(size) for size in bins]
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                samples = [
                    slow_sample(
                        x[int(index)],
                        y1 + (i + (p + 0.5) / grid[0]) * bins[0],
                        x1 + (j + (q + 0.5) / grid[1]) * bins[1],
                    )
                    for p in range(grid[0])
                    for q in range(grid[1])
                ]
                # The features of an empty region are zero.
                pooled.append(torch.stack(samples).mean(0) if samples else x[0, :, 0, 0] * 0)
    return torch.stack(pooled).view(len(rois), *SIZE, -1).permute(0, 3, 1, 2)


def feature_map(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64, generator=generator)
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_and_its_gradient_equal_the_slow_reference(sampling_ratio, aligned):
    rois = torch.tensor(ROIS, dtype=torch.float64)
    x, x_slow = feature_map(), feature_map()
    out = ops.roi_align(x, rois, SIZE, SCALE, sampling_ratio, 'avg', aligned)
    expected = slow_roi_align(x_slow, rois, sampling_ratio, aligned)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert x_slow.grad.abs().max() > 0.1
    torch.testing.assert_close(x.grad, x_slow.grad, rtol=1e-10, atol=1e-12)


def test_roi_align_aligned_and_sampling_ratio_matter():
    rois, x = torch.tensor(ROIS, dtype=torch.float64), feature_map()
    outs = [
        ops.roi_align(x, rois, SIZE, SCALE, sampling_ratio, 'avg', aligned)
        for sampling_ratio in (0, 2)
        for aligned in (True, False)
    ]
    for i, first in enumerate(outs):
        for second in outs[:i]:
            assert (first - second).abs().max() > 1e-2


@needs_stand_in
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('rois_dtype', [torch.float32, None])
def test_roi_align_in_low_precision_is_rounded_once(dtype, rois_dtype):
    rois = torch.tensor(ROIS).to(rois_dtype or dtype)
    x, x_slow = feature_map(dtype), feature_map(dtype)
    out = ops.roi_align(x, rois, SIZE, SCALE, 2, 'avg', True)
    expected = slow_roi_align(x_slow.double(), rois, 2, True)
    out.sum().backward()
    expected.sum().backward()
    assert out.dtype == x.grad.dtype == dtype
    # Half a unit in the last place, plus float32's error where values cancel.
    tolerance = dict(rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(out.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad, x_slow.grad, **dict(tolerance, rtol=torch.finfo(dtype).eps))


def test_roi_align_without_regions():
    x = feature_map()
    out = ops.roi_align(x, torch.zeros(0, 5, dtype=x.dtype), SIZE, SCALE)
    out.sum().backward()
    assert out.shape == (0, 3, *SIZE) and not x.grad.any()


@pytest.mark.gpu
def test_gpu_kernels_equal_the_cpu_ones():
    boxes, scores = random_boxes(200)
    expected = ops.nms(boxes, scores, 0.5, offset=1)[1]
    assert torch.equal(ops.nms(boxes.cuda(), scores.cuda(), 0.5, offset=1)[1].cpu(), expected)
    for dtype in (torch.float32, torch.bfloat16):
        x, rois = feature_map(dtype), torch.tensor(ROIS)
        x_gpu = x.detach().cuda().requires_grad_()
        out, out_gpu = (ops.roi_align(a, rois.to(a.device), SIZE, SCALE) for a in (x, x_gpu))
        out.sum().backward()
        out_gpu.sum().backward()
        tolerance = dict(rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
        torch.testing.assert_close(out_gpu.cpu(), out, **tolerance)
        torch.testing.assert_close(x_gpu.grad.cpu(), x.grad, **tolerance)


# --- Missing ops, and installation --------------------------------------------------------------


@needs_stand_in
def test_missing_ops_fail_when_called_and_say_what_to_do():
    layer = ops.DeformConv2d(3, 3, 3, padding=1)
    with pytest.raises(NotImplementedError, match=r"'deform_conv_forward'.*pip install"):
        layer(torch.rand(1, 3, 4, 4), torch.zeros(1, 18, 4, 4))
    with pytest.raises(NotImplementedError, match=r"'softnms'.*pip install"):
        ops.soft_nms(*random_boxes(3))
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*pip install"):
        ops.roi_align(feature_map(), torch.tensor(ROIS).double(), SIZE, SCALE, 0, 'max')


@needs_stand_in
def test_the_stand_in_looks_like_a_module():
    from mmcv.utils import collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    assert mmcv_ops.install() and sys.meta_path.count(mmcv_ops._FINDER) == 1
    assert mmcv_full_available()
    assert importlib.util.find_spec('mmcv._ext').origin == 'torchvision'
    if hasattr(pkgutil, 'find_loader'):  # mainline mmengine; gone in Python 3.14
        assert pkgutil.find_loader('mmcv._ext') is not None
    assert 'torchvision' in collect_env()['MMCV Compiler']
    assert not hasattr(sys.modules['mmcv._ext'], '__file__')


@pytest.fixture
def fake_mmcv(tmp_path, monkeypatch):
    """A fresh copy of mmcv_ops that sees an empty mmcv package in `tmp_path`."""
    package = ModuleType('mmcv')
    package.__spec__ = ModuleSpec('mmcv', None, is_package=True)
    package.__path__ = package.__spec__.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, 'mmcv', package)
    for name in ('mmcv._ext', 'mmcv.ops', 'mmcv.utils.ext_loader'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    finders = [finder for finder in sys.meta_path if finder is not mmcv_ops._FINDER]
    monkeypatch.setattr(sys, 'meta_path', finders)
    spec = importlib.util.spec_from_file_location('fresh_mmcv_ops', mmcv_ops.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


def test_not_installed_where_compiled_ops_exist(fake_mmcv, tmp_path, monkeypatch):
    (tmp_path / '_ext.py').write_text('')
    before = list(sys.meta_path)
    assert fake_mmcv.install() is False
    (tmp_path / '_ext.py').unlink()
    importlib.invalidate_caches()
    monkeypatch.setitem(sys.modules, 'mmcv._ext', ModuleType('mmcv._ext'))
    assert fake_mmcv.install() is False and sys.meta_path == before


def test_compiled_ops_win_even_when_they_come_later(fake_mmcv, tmp_path):
    assert fake_mmcv.install() is True
    assert importlib.util.find_spec('mmcv._ext').origin == 'torchvision'
    (tmp_path / '_ext.py').write_text('')
    importlib.invalidate_caches()
    assert importlib.util.find_spec('mmcv._ext').origin == str(tmp_path / '_ext.py')


def test_a_failed_import_of_the_ops_beforehand_is_warned_about(fake_mmcv, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.utils.ext_loader', ModuleType('ext_loader'))
    with pytest.warns(RuntimeWarning, match='Import mcbeit_mm before mmdet'):
        assert fake_mmcv.install() is True


# --- mmdet --------------------------------------------------------------------------------------


def tiny_mask_rcnn():
    mmdet = pytest.importorskip('mmdet')
    from mmengine.config import Config

    path = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py'
    model = Config.fromfile(path).model
    narrow, classes = dict(in_channels=16), dict(num_classes=3)
    model.backbone.update(depth=18, init_cfg=None, frozen_stages=-1)
    model.neck.update(in_channels=[64, 128, 256, 512], out_channels=16)
    model.rpn_head.update(narrow, feat_channels=16)
    for kind in ('bbox', 'mask'):
        model.roi_head[f'{kind}_roi_extractor'].update(out_channels=16)
        model.roi_head[f'{kind}_head'].update(narrow | classes)
    model.roi_head.bbox_head.update(fc_out_channels=32)
    model.roi_head.mask_head.update(num_convs=1, conv_out_channels=16)
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    return model


def test_mask_rcnn_trains_and_predicts():
    config = tiny_mask_rcnn()
    import mmdet.models  # noqa: F401
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import OptimWrapper
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config)
    model.init_weights()
    batch = demo_mm_inputs(2, (3, 96, 128), num_items=[3, 2], num_classes=3, with_mask=True)
    for sample in batch['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))

    model.train()
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    assert losses['loss_mask'] > 0 and losses['loss_bbox'] > 0
    losses['loss_mask'].backward()  # reaches the backbone through RoIAlign only
    assert model.backbone.conv1.weight.grad.abs().max() > 0

    model.zero_grad()
    before = model.backbone.conv1.weight.detach().clone()
    losses = model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert torch.isfinite(losses['loss'])
    assert not torch.equal(model.backbone.conv1.weight, before)

    model.eval()
    with torch.no_grad():
        predictions = model.test_step(batch)
    for prediction in predictions:
        instances = prediction.pred_instances
        assert len(instances) == 5
        assert instances.masks.shape == (5, 96, 128) and instances.masks.dtype == torch.bool
        assert torch.isfinite(instances.bboxes).all()
        assert (instances.scores.diff() <= 0).all()
