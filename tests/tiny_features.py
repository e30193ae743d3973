"""An image folder and a checkpoint for feature evaluation."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from PIL import Image

from mcbeit_mm.backbone import MCBEiTViT

CONFIG = """
custom_imports = dict(imports=['mcbeit_mm'])
lr = float('inf')
model = dict(
    type='MCBEiT',
    data_preprocessor=dict(
        type='TwoNormDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        second_mean=[0.0, 0.0, 0.0],
        second_std=[255.0, 255.0, 255.0],
        to_rgb=True,
    ),
    backbone=dict(
        type='MCBEiTViT',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
        img_size=(32, 32),
        patch_size=8,
    ),
    head={'odd key': None, 'embed_dims': 16},
)
"""


def write_stripes(root):
    """Three classes of stripes: direction and period differ."""
    rng = np.random.default_rng(0)
    for split, num in (('train', 14), ('val', 6)):
        for label in range(3):
            (root / split / f'class {label}').mkdir(parents=True)
            for i in range(num):
                waves = np.sin(np.arange(40) * (0.4 + 0.25 * label) + rng.uniform(0, 6))
                image = 128 + 60 * waves[None, :, None] + rng.normal(0, 40, (40, 40, 3))
                image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
                image.save(root / split / f'class {label}' / f'{i}.png')
    return root


def make_checkpoint(path, config, **changes):
    """A file as Runner.save_checkpoint writes it, NumPy and MMEngine objects included."""
    cfg = Config.fromfile(config)
    torch.manual_seed(7)
    backbone = MCBEiTViT(**{k: v for k, v in cfg.model.backbone.items() if k != 'type'})
    with torch.no_grad():
        for param in backbone.parameters():
            param.normal_(std=0.3)
    state_dict = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    state_dict |= {
        'head.lm_head.weight': torch.zeros(8, 16),
        'backbone.blocks.0.attn.relative_position_index': torch.zeros(17, 17),
    }
    checkpoint = dict(
        meta=dict(epoch=1, cfg=cfg.pretty_text, seed=np.int64(0)),
        state_dict={k: v for k, v in state_dict.items() if k not in changes.get('without', ())},
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))),
    )
    checkpoint.update(changes.get('entries', {}))
    torch.save(checkpoint, path)
    return backbone
