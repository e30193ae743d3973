"""Linear probe of a frozen ViT-B/16 on ImageNet-1k.

Settings of BEiT's run_linear_eval.py, which trains one head per block on [class token, mean]. Here
the head gets the normalized mean of one block. Intermediate blocks are better than the last: try
--cfg-options model.backbone.out_indices=8
"""

_base_ = './mcbeit_vit-base-p16_8xb128-amp-coslr-100e_in1k.py'

model = dict(
    type='LinearProbe',
    backbone=dict(drop_path_rate=0.0, out_indices=-1),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(std=0.01),
        cal_acc=True,
    ),
    train_cfg=None,
)
train_pipeline = _base_.train_pipeline[:3] + _base_.train_pipeline[-1:]  # crop and flip
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=4e-3, weight_decay=1e-4), paramwise_cfg=dict(layer_decay_rate=1.0)
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=0, eta_min_ratio=0.0)
