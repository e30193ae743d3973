"""mc-BEiT ViT-L/16 + UperNet on ADE20K with activation checkpointing.

Settings of BEiT-L, published for a backbone fine-tuned on ImageNet; the authors give none for L.
"""

_base_ = [
    '../_base_/models/upernet_mcbeit_vit-large-p16.py',
    '../_base_/datasets/ade20k_bs2_512x512.py',
    '../_base_/schedules/upernet_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]

optim_wrapper = dict(
    optimizer=dict(lr=2e-5), paramwise_cfg=dict(layer_decay_rate=0.95)
)  # unilm beit, upernet_beit_large_24_512_slide_160k_ade20k_pt2ft.py
