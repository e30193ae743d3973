"""Small Gumbel VQGAN for the demo: 256 codes, 64-px views of the demo data, on a CPU."""

_base_ = '../tokenizer/gumbel-vqgan_f8-512_1xb16-4k_photos-64px.py'

max_iters = 450

model = dict(n_embed=256, warmup_iters=max_iters // 4, total_iters=max_iters)
train_dataloader = dict(
    dataset=dict(
        split='all', data_root='{{$MCBEIT_DATA:data/demo/classification}}', data_prefix='train'
    )
)
val_dataloader = val_evaluator = val_cfg = None  # the report evaluates it
param_scheduler = [dict(type='WarmupCosineLR', warmup=50, end=max_iters, by_epoch=False)]
train_cfg = dict(max_iters=max_iters)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1),
)
custom_hooks = [dict(type='ThroughputHook'), dict(type='ExportTokenizerHook')]
