"""Coordinates stay in float32 under mixed precision, where mmdet's own classes round them."""

import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from mcbeit_mm.layers.detection_precision import Float32RoIExtractor, Float32RPNHead

STRIDES = (4, 8, 16, 32)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def proposals(head_class):
    """Boxes (N, 4) proposed by an RPN head on a 1024-pixel image under bf16 autocast."""
    torch.manual_seed(0)
    head = head_class(
        in_channels=4,
        feat_channels=4,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[16]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        test_cfg=ConfigDict(
            nms_pre=3 * 64 * 64, max_per_img=4000, nms=dict(type='nms', iou_threshold=1.0)
        ),
    )
    torch.nn.init.normal_(head.rpn_cls.weight, std=1.0)
    for param in head.rpn_reg.parameters():  # proposals equal the anchors
        torch.nn.init.zeros_(param)
    feats = (torch.randn(1, 4, 64, 64),)
    metas = [dict(img_shape=(1024, 1024), scale_factor=(1, 1))]
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        scores, deltas = head(feats)
        (found,) = head.predict_by_feat(scores, deltas, batch_img_metas=metas, cfg=head.test_cfg)
    return found.bboxes


def widths(boxes):
    inner = (boxes > 0).all(1) & (boxes < 1024).all(1)  # not clipped
    return (boxes[inner, 2] - boxes[inner, 0]).float()


def test_anchors_keep_their_size_under_bf16():
    expected = torch.tensor([64 * 2**0.5, 64.0, 64 / 2**0.5])
    found = widths(proposals(Float32RPNHead))
    assert len(found) > 1000
    assert (found[:, None] - expected).abs().min(1).values.max() < 1e-3
    rounded = widths(proposals(RPNHead))
    assert (rounded[:, None] - expected).abs().min(1).values.max() > 1  # the error avoided


def regions(extractor_class, dtype):
    extractor = extractor_class(
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=1,
        featmap_strides=STRIDES,
    )
    # The feature is the index of the 4-pixel column, exact in bf16.
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    feats = tuple(ramp[..., ::s, ::s].to(dtype).contiguous() for s in (1, 2, 4, 8))
    left = torch.tensor([[0, x, 500.0, x + 30.7, 540.0] for x in (3.3, 401.9, 771.3, 970.1)])
    return extractor(feats, left)


def test_regions_keep_their_position_under_bf16():
    exact = regions(SingleRoIExtractor, torch.float32)
    assert torch.equal(regions(Float32RoIExtractor, torch.float32), exact)
    ours = regions(Float32RoIExtractor, torch.bfloat16)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, exact)
    theirs = regions(SingleRoIExtractor, torch.bfloat16).float()
    assert (theirs - exact).abs().max() > 0.4  # the error avoided
