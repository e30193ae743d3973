"""mc-BEiT ViT-B/16 + UperNet on ADE20K: the authors' recipe. They report 50.8 mIoU, without saying
whether the backbone was fine-tuned on ImageNet first.

MCBEIT_WEIGHTS=pretrained.pth MCBEIT_DATA=/path/to/ADEChallengeData2016 bash tools/dist_train.sh
configs/segmentation/mcbeit_vit-base-p16_upernet_8xb2-amp-160k_ade20k-512x512.py 8
"""

_base_ = [
    '../_base_/models/upernet_mcbeit_vit-base-p16.py',
    '../_base_/datasets/ade20k_bs2_512x512.py',
    '../_base_/schedules/upernet_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]
