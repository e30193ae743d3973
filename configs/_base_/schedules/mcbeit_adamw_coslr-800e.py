"""The authors' pretraining schedule (README): 800 epochs at a batch of 2048, fp16."""

optim_wrapper = dict(
    type='AmpOptimWrapper',  # fp16, dynamic loss scale; also Bf16OptimWrapper, OptimWrapper (fp32)
    optimizer=dict(
        type='AdamW',
        lr=1.5e-3,  # for 2048 images; --auto-scale-lr for other batches
        betas=(0.9, 0.98),
        eps=1e-8,
        fused=True,  # one pass over the weights: a third of the time, docs/benchmark.md
        weight_decay=0.05,
    ),
    clip_grad=dict(max_norm=3.0),
    constructor='ViTLayerDecayConstructor',
    # No layer decay; no weight decay for biases, norms, layer scales and cls_token.
    paramwise_cfg=dict(layer_decay_rate=1.0),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=10,
        end=800,
        eta_min_ratio=1e-5 / 1.5e-3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=800)
auto_scale_lr = dict(enable=False, base_batch_size=2048)
