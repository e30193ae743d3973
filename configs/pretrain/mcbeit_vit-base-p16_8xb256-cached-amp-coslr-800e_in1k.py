"""mc-BEiT ViT-B/16 on 8 GPUs from cached targets, without a tokenizer.

Set MCBEIT_CACHE to a folder that tools/cache_targets.py built from the base config. Each image has
only the crops in the cache: docs/target_cache.md.
"""

_base_ = './mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'

cache = '{{$MCBEIT_CACHE:data/target_cache}}'
model = dict(target_generator=dict(type='CachedTokenizer', checkpoint=cache))
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='CachedTargetsCrop', cache=cache),
    dict(type='RandomPatchMask', grid_size=14, mask_ratio=0.75),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
