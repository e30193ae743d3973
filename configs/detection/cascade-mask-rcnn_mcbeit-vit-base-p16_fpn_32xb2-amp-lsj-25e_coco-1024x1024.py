"""Cascade Mask R-CNN with the authors' backbone and schedule (our choice).

Three box heads with mmdet's cascade settings, each built like that of Mask R-CNN.
"""

_base_ = './mask-rcnn_mcbeit-vit-base-p16_fpn_32xb2-amp-lsj-25e_coco-1024x1024.py'

model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            {
                **_base_.model.roi_head.bbox_head,
                'reg_class_agnostic': True,
                'bbox_coder': dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
            }
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
    ),
    train_cfg=dict(
        rcnn=[
            {
                **_base_.model.train_cfg.rcnn,
                'assigner': dict(
                    type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, match_low_quality=False
                ),
            }
            for iou in (0.5, 0.6, 0.7)
        ]
    ),
)
