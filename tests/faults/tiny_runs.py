"""Tiny real training runs: photos, tokenizer weights and configs that take seconds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = 32
SIZES = dict(
    double_z=False, z_channels=8, resolution=32, in_channels=3, out_ch=3, ch=8,
    ch_mult=[1, 1, 2, 2], num_res_blocks=1, attn_resolutions=[], dropout=0.0, num_groups=4,
)  # fmt: skip

PRETRAINING = """
_base_ = '{root}/configs/pretrain/mcbeit_vit-tiny-p16_1xb128-bf16-coslr-100e_photos-128px.py'
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
        img_size=64,
        drop_path_rate=0.2,  # random numbers in the model too
    ),
    head=dict(embed_dims=32, tau=0.5),
    target_generator=dict(
        ddconfig={sizes}, n_embed=24, embed_dim=8, checkpoint='{folder}/tokenizer.pth'
    ),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(size=64, second_size=32)
train_pipeline[3].update(grid_size=4)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(data_root='{folder}/photos', data_prefix='', pipeline=train_pipeline),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-2))
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=3),
)
custom_imports = dict(imports=['mcbeit_mm', 'fault_points'])
where = [
    dict(type='WhereHook', point='before_saving', priority=85),
    dict(type='WhereHook', point='after_saving', priority='LOWEST'),
]
"""

EPOCHS = """
train_cfg = dict(max_epochs=4)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=1, end=4)
"""

VARIANTS = {
    # 8 iterations an epoch, so that 3 of 4 checkpoints are within an epoch.
    'epochs, EMA, k-NN, tau warm-up': PRETRAINING
    + EPOCHS
    + """
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', momentum=0.1),
    dict(type='KNNHook', data='{folder}/classes', interval=1, k=3, num_workers=1),
    dict(type='MeasuringHook'),
    dict(type='TauWarmupHook', tau_start=1.0, warmup_epochs=3),
    *where,
]
""",
    # An odd interval: every second checkpoint is within an accumulation.
    'epochs, gradients of 2 accumulated, bf16': PRETRAINING
    + EPOCHS
    + """
optim_wrapper = dict(type='Bf16OptimWrapper', accumulative_counts=2)
custom_hooks = [*_base_.custom_hooks, *where]
""",
    'iterations, EMA': PRETRAINING
    + """
train_dataloader.update(sampler=dict(type='InfiniteSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='ResumableIterLoop', max_iters=32)
param_scheduler = [
    dict(type='WarmupCosineLR', warmup=8, end=32, eta_min_ratio=0.01, by_epoch=False)
]
default_hooks.update(logger=dict(interval=1, log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=0.1), *where]
""",
    'tokenizer, validated every 5 iterations': """
_base_ = '{root}/configs/tokenizer/gumbel-vqgan_f8-512_1xb16-4k_photos-64px.py'
model = dict(
    ddconfig=dict(z_channels=8, ch=8, ch_mult=[1, 1, 2, 2]),
    n_embed=24, embed_dim=8, warmup_iters=8, total_iters=24, restart_interval=4,
)
train_dataloader = dict(
    batch_size=4, dataset=dict(data_root='{folder}/photos', val_share=0.25)
)
val_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root='{folder}/photos', val_share=0.25)
)
train_cfg = dict(max_iters=24, val_interval=5)
param_scheduler = [dict(type='WarmupCosineLR', warmup=8, end=24, by_epoch=False)]
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=3)
)
custom_imports = dict(imports=['mcbeit_mm', 'fault_points'])
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='WhereHook', point='before_saving', priority=85),
    dict(type='WhereHook', point='after_saving', priority='LOWEST'),
]
""",
    # MixUp, averaged weights swapped in while validating, the best checkpoint kept.
    'classification, EMA, validated every epoch': """
_base_ = (
    '{root}/configs/classification/mcbeit_vit-tiny-p16_1xb64-bf16-coslr-20e_imagefolder-128px.py'
)
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
        img_size=64,
        drop_path_rate=0.2,
        init_cfg=None,
    ),
    data_preprocessor=dict(num_classes=2),
    head=dict(in_channels=32, num_classes=2),
    train_cfg=dict(_delete_=True, augments=[dict(type='Mixup', alpha=0.8)]),
)
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=64)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=64)
test_pipeline[2].update(crop_size=64)
train_dataloader = dict(
    batch_size=4, dataset=dict(data_root='{folder}/classes', pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root='{folder}/classes', pipeline=test_pipeline)
)
train_cfg = dict(max_epochs=6)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=1, end=6)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=3, save_best='accuracy/top1'),
)
custom_imports = dict(imports=['mcbeit_mm', 'fault_points'])
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', momentum=0.1),
    dict(type='WhereHook', point='before_saving', priority=85),
    dict(type='WhereHook', point='after_saving', priority='LOWEST'),
]
""",
}


@dataclass(frozen=True)
class TinyRun:
    """A config with `iters` iterations and a checkpoint every `interval`."""

    name: str
    config: Path
    iters: int
    validates: bool
    interval: int = 3


def make_runs(folder: Path, names: list[str] | None = None) -> list[TinyRun]:
    """Write photos, classes, tokenizer weights and a config for each variant below `folder`."""
    from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(PHOTOS):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)
        for place in (f'photos/{i % 3}', f'classes/{("train", "val")[i % 2]}/{"ab"[i % 4 // 2]}'):
            (folder / place).mkdir(parents=True, exist_ok=True)
            photo.save(folder / place / f'{i:02d}.jpg', quality=90)
    torch.manual_seed(0)
    tokenizer = GumbelVQGANTokenizer(SIZES, 24, 8)
    torch.save(dict(state_dict=tokenizer.state_dict()), folder / 'tokenizer.pth')
    runs = []
    for number, (name, text) in enumerate(VARIANTS.items()):
        if names and name not in names:
            continue
        config = folder / f'variant{number}.py'
        config.write_text(text.format(root=ROOT, folder=folder, sizes=SIZES))
        iters = PHOTOS if 'target_generator' in text else 24
        validates = 'KNNHook' in text or 'val_dataloader' in text
        runs.append(TinyRun(name, config, iters, validates))
    return runs
