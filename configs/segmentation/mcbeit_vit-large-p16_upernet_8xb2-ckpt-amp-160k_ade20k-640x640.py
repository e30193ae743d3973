"""mc-BEiT ViT-L/16 + UperNet on 640-px crops, with BEiT-L's settings for 640 px.

Activation checkpointing replaces BEiT's accumulation of 2 x 8 images, so the warm-up takes 1,500
steps instead of 3,000 of half the size.
"""

_base_ = [
    '../_base_/models/upernet_mcbeit_vit-large-p16.py',
    '../_base_/datasets/ade20k_bs2_640x640.py',
    '../_base_/schedules/upernet_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]

crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),
    backbone=dict(img_size=640),
    test_cfg=dict(crop_size=crop_size, stride=(426, 426)),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-5), paramwise_cfg=dict(layer_decay_rate=0.95)
)  # unilm beit, upernet_beit_large_24_640_slide_160k_ade20k_pt2ft.py
