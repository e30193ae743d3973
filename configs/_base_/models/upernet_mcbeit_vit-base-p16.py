"""UperNet on unnormalized maps of mc-BEiT ViT-B/16, 512-px crops, 150 classes: the authors' model.

Weights: MCBEIT_WEIGHTS; from scratch with --cfg-options model.backbone.init_cfg=None
"""

norm_cfg = dict(type='SyncBN', requires_grad=True)  # plain BN in a single process
crop_size = (512, 512)

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],  # ImageNet statistics, as in pretraining
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
        # Sliding windows: pad images smaller than a crop. Whole images: size=None size_divisor=16.
        test_cfg=dict(size=crop_size, size_divisor=None),
    ),
    backbone=dict(
        type='MCBEiTViT',
        arch='base',
        img_size=512,
        patch_size=16,
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
        rel_pos='per_block',
        out_type='featmap',
        out_indices=[3, 5, 7, 11],
        final_norm=False,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-base-p16.pth}}',
        ),
    ),
    neck=dict(type='Feature2Pyramid', embed_dim=768, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)),
)
