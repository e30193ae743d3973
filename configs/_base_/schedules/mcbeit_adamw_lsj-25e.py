"""The authors' detection schedule: 25 epochs at a batch of 64, no layer decay, no clipping."""

max_epochs = 25  # theirs: 46,093 steps

optim_wrapper = dict(
    type='AmpOptimWrapper',  # fp16, dynamic loss scale (its default)
    optimizer=dict(type='AdamW', lr=8e-5, betas=(0.9, 0.999), weight_decay=0.1),
    # All other biases and the layer scale are decayed, as in the authors' code.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
        },
    ),
)
# The cosine spans the whole training and is multiplied by the warm-up. detectron2 interpolates to
# the cosine's value at the end of the warm-up, which is nearly equal.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        by_epoch=True,
        begin=0,
        end=0.25,  # theirs: 461 steps
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=64)
