"""Work dirs of transfer runs that were never run."""

import json
from pathlib import Path

from mmengine.config import Config

from mcbeit_mm.visualization.transfer_runs import TransferRun

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def write_run(folder: Path, scope: str, validation: dict, **settings) -> TransferRun:
    """A work dir with a config and a log: ten steps, a validation after 4 and one after 8."""
    log = folder / '20260101_000000/vis_data'
    log.mkdir(parents=True)
    entries = [dict(lr=0.1, loss=1 / step, step=step, time=1.0) for step in range(1, 11)]
    first = dict.fromkeys(validation, 0.0) | dict(step=1, data_time=0.5, time=9.0)
    entries.insert(4, first)
    entries.insert(9, validation | dict(step=2, data_time=0.5, time=9.0))
    lines = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (log / 'scalars.json').write_text(lines)
    backbone = dict(type='MCBEiTViT', init_cfg=dict(type='Pretrained', checkpoint='x.pth'))
    cfg = dict(
        default_scope=scope,
        model=dict(backbone=backbone),
        val_dataloader=dict(dataset=dict()),
        train_cfg=dict(max_iters=10),
    )
    Config(cfg | settings).dump(folder / 'run.py')
    return TransferRun(folder)
