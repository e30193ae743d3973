"""Transfer runs of the demo configs that take seconds, and made-up logs."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mcbeit_mm.config import launch
from mcbeit_mm.datasets.demo.layouts import make_demo_data

ARCH = dict(embed_dims=32, num_layers=6, num_heads=2, feedforward_channels=32)
SHARED = {
    'model.backbone.arch': ARCH,
    'model.backbone.img_size': 64,
    'model.backbone.init_cfg': None,
    'optim_wrapper.type': 'OptimWrapper',  # fp32
    'optim_wrapper.optimizer.lr': 0.01,
    'train_dataloader.num_workers': 0,
    'train_dataloader.batch_size': 4,
    'default_hooks.logger.interval': 1,
}
TASKS = {
    'classification': {
        'model.head.in_channels': 32,
        'train_dataloader.dataset.pipeline.1.scale': 64,
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': 2,
    },
    'segmentation': {
        'model.neck.embed_dim': 32,
        'model.decode_head.in_channels': [32] * 4,
        'model.decode_head.channels': 8,
        'model.data_preprocessor.size': (64, 64),
        'model.data_preprocessor.test_cfg.size': (64, 64),
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 4,
    },
    'detection': {
        'model.neck.in_channels': [32] * 4,
        'model.backbone.window_size': 4,
        'model.test_cfg.rcnn.score_thr': 0.0,  # some detections, however bad
    },
}


def train_pair(task: str, root: Path) -> list[Path]:
    """Work dirs that say 'pretrained' and 'from scratch'; the second is a copy of the first."""
    make_demo_data(root / 'data', train=10, val=10, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MCBEIT_DATA', str(root / 'data' / task))
        cfg = launch.load_config(f'{ROOT}/configs/demo/mcbeit_vit-micro-p16_{task}_demo.py')
    cfg.merge_from_dict(SHARED | TASKS[task])
    cfg.work_dir = str(root / task)
    launch.adapt_to_device(cfg)
    Runner.from_cfg(cfg).train()
    DefaultScope._instance_dict.clear()
    pretrained, scratch = root / task, root / f'{task}-scratch'
    shutil.copytree(pretrained, scratch)
    (config,) = pretrained.glob('*.py')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='gone.pth')
    cfg.dump(config)
    return [pretrained, scratch]


def write_run(
    folder: Path, scope: str, validation: dict, *, log: str = '', pretrained=True, **settings
) -> Path:
    """A work dir with a config and logs: ten steps, a validation after 4 and one after 8."""
    logs = folder / '20260101_000000'
    (logs / 'vis_data').mkdir(parents=True)
    entries = [dict(lr=0.1, loss=1 / step, step=step, time=1.0) for step in range(1, 11)]
    first = dict.fromkeys(validation, 0.0) | dict(step=1, data_time=0.5, time=9.0)
    entries.insert(4, first)
    entries.insert(9, validation | dict(step=2, data_time=0.5, time=9.0))
    lines = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (logs / 'vis_data/scalars.json').write_text(lines)
    (logs / '20260101_000000.log').write_text(log)
    start = dict(type='Pretrained', checkpoint='x.pth') if pretrained else None
    cfg = dict(
        default_scope=scope,
        model=dict(backbone=dict(type='MCBEiTViT', init_cfg=start)),
        val_dataloader=dict(dataset=dict()),
        train_cfg=dict(max_iters=10),
    )
    Config(cfg | settings).dump(folder / 'run.py')
    return folder
