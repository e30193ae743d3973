"""UperNet on a ViT-B/16 fine-tuned on ImageNet, with BEiT's pt2ft learning rate.

MCBEIT_WEIGHTS takes the checkpoint of a classification run of this repository or of the authors.
"""

_base_ = './mcbeit_vit-base-p16_upernet_8xb2-amp-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='{{$MCBEIT_WEIGHTS:weights/mcbeit_vit-base-p16_in1k.pth}}')
    )
)
optim_wrapper = dict(optimizer=dict(lr=3e-5))  # unilm beit, *_pt2ft.py; layer decay stays 0.9
