"""The authors' fine-tuning schedule (README): 100 epochs at a batch of 1024, fp16, no clipping."""

optim_wrapper = dict(
    type='AmpOptimWrapper',  # fp16, dynamic loss scale; no clipping, as the authors' DeepSpeed
    optimizer=dict(
        type='AdamW',
        lr=4e-3,  # for 1024 images; --auto-scale-lr for other batches
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,  # one pass over the weights: a third of the time, docs/benchmark.md
        weight_decay=0.05,
    ),
    constructor='ViTLayerDecayConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=20,
        end=100,
        eta_min_ratio=1e-6 / 4e-3,  # the authors' default 1e-6, scaled per layer
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=1024)
