"""UperNet on mc-BEiT ViT-L/16. Settings of BEiT-L (microsoft/unilm); the authors give none."""

_base_ = './upernet_mcbeit_vit-base-p16.py'

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.2,
        layer_scale_init_value=1e-5,  # as our pretraining of L (BEiT: 1e-6)
        out_indices=[7, 11, 15, 23],
        with_cp=True,
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-large-p16.pth}}'),
    ),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
