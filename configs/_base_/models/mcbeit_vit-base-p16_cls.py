"""ViT-B/16 with a linear classifier on the mean patch token: 86,530,984 parameters.

Weights: MCBEIT_WEIGHTS, a pretraining checkpoint of mc-BEiT or BEiT; from scratch with
--cfg-options model.backbone.init_cfg=None
"""

default_scope = 'mmpretrain'

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],  # ImageNet statistics, as in pretraining
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='MCBEiTViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,  # authors' README
        layer_scale_init_value=0.1,  # default of the authors' script
        rel_pos='per_block',
        out_type='avg_featmap',  # fresh fc_norm on the mean without the class token
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-base-p16.pth}}'
        ),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        # Mixing is linear: smoothing mixed targets equals the authors' mixing of smoothed targets.
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        # std 0.02 x init_scale 0.001. MMEngine's TruncNormal sets 1 value in 2^25 to its bound.
        init_cfg=dict(type='Normal', layer='Linear', std=0.02 * 0.001, bias=0),
    ),
    # Authors' README: one of the two per batch with equal probability. Each image is mixed with a
    # random one; the authors mix with the reversed batch.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
