"""ViT-S/16 fine-tuned on your own train/CLASS/*.jpg and val/CLASS/*.jpg, with one GPU.

MCBEIT_WEIGHTS=pretrained.pth MCBEIT_DATA=/path/to/photos MCBEIT_CLASSES=10 python tools/train.py
configs/classification/mcbeit_vit-small-p16_1xb64-bf16-coslr-50e_imagefolder.py
"""

_base_ = './mcbeit_vit-small-p16_8xb128-amp-coslr-100e_in1k.py'

model = dict(
    data_preprocessor=dict(num_classes=int('{{$MCBEIT_CLASSES:10}}')),
    head=dict(num_classes=int('{{$MCBEIT_CLASSES:10}}')),
)
train_dataloader = dict(
    batch_size=64, num_workers=4, dataset=dict(data_root='{{$MCBEIT_DATA:data/photos}}')
)
val_dataloader = dict(
    batch_size=96, num_workers=4, dataset=dict(data_root='{{$MCBEIT_DATA:data/photos}}')
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
optim_wrapper = dict(
    type='Bf16OptimWrapper',
    optimizer=dict(lr=4e-3 * 64 / 1024),  # the linear rule from the authors' batch
)
train_cfg = dict(max_epochs=50)  # our choice, as is the warm-up
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=5, end=50)
auto_scale_lr = dict(base_batch_size=64)
