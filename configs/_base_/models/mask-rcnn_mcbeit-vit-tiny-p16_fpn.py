"""A small Mask R-CNN on ViT-Ti/16 for 320-px images; all sizes are our choices."""

_base_ = './mask-rcnn_mcbeit-vit-base-p16_fpn.py'

width = 64
norm_cfg = dict(type='GN', num_groups=8)  # the batch is too small for batch norm

model = dict(
    data_preprocessor=dict(pad_size_divisor=320),
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=192,
            num_layers=12,
            num_heads=3,
            feedforward_channels=768,
        ),
        img_size=320,
        global_blocks=None,  # the last block of each quarter
        window_size=8,  # grid of 128-px pretraining, so its table fits unchanged
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-tiny-p16.pth}}'),
    ),
    neck=dict(in_channels=[192] * 4, out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        num_convs=1,
        anchor_generator=dict(scales=[4]),  # 16 to 256 pixels
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=width,
            conv_out_channels=width,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
        ),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=128))
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200)),
)
