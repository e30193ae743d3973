"""mc-BEiT ViT-B/16 + UperNet on 640-px crops: BEiT's 640-px sizes with the authors' schedule.

Our choice: the authors give 512 px only.
"""

_base_ = [
    '../_base_/models/upernet_mcbeit_vit-base-p16.py',
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
