"""mc-BEiT ViT-B/16: the authors' recipe for 16 GPUs. They report 84.1 top-1 after fine-tuning.

bash tools/slurm_train.sh PARTITION JOB
configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py
"""

_base_ = [
    '../_base_/models/mcbeit_vit-base-p16.py',
    '../_base_/datasets/imagenet_bs128_mcbeit.py',
    '../_base_/schedules/mcbeit_adamw_coslr-800e.py',
    '../_base_/default_runtime.py',
]
