"""Mask R-CNN on a windowed ViT-B/16, as in the authors' detection code.

mmdet's base already has their other settings: anchors of 32 to 512 pixels in three shapes, matching
at 0.3/0.7 and 0.5, 256 and 512 samples, 2000/1000 proposals before and 1000 after NMS at 0.7, score
threshold 0.05, NMS at 0.5, RoIAlign of 7 and 14 with sampling ratio 0.
"""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

# The authors' NaiveSyncBN with stats_mode N weights GPUs by their samples, as torch's SyncBN does.
norm_cfg = dict(type='SyncBN')

model = dict(
    # Pads to 1024 x 1024 after normalization, that is, with the mean color. Padding here and not in
    # the pipeline leaves img_shape at the image size, to which boxes are clipped. Mean and standard
    # deviation are ImageNet's.
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='MCBEiTDetViT',
        arch='base',
        img_size=1024,
        patch_size=16,
        window_size=16,
        rel_pos='shared',  # as in pretraining: one windowed table and one global table
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-base-p16.pth}}'
        ),
    ),
    neck=dict(in_channels=[768] * 4, norm_cfg=norm_cfg),
    # Float32 coordinates under mixed precision, as in detectron2.
    rpn_head=dict(type='Float32RPNHead', num_convs=2),
    roi_head=dict(
        bbox_roi_extractor=dict(type='Float32RoIExtractor'),
        mask_roi_extractor=dict(type='Float32RoIExtractor'),
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
