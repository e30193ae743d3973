"""ViT-B/16 fine-tuned on ImageNet-1k: the authors' recipe for 8 GPUs. They report 84.1 top-1.

MCBEIT_WEIGHTS=pretrained.pth MCBEIT_DATA=/path/to/imagenet bash tools/dist_train.sh
configs/classification/mcbeit_vit-base-p16_8xb128-amp-coslr-100e_in1k.py 8
"""

_base_ = [
    '../_base_/models/mcbeit_vit-base-p16_cls.py',
    '../_base_/datasets/imagenet_bs128_cls.py',
    '../_base_/schedules/finetune_adamw_coslr-100e.py',
    '../_base_/transfer_runtime.py',
]
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1'))
