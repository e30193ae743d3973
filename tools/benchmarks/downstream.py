"""The transfer backbones: the authors' attention and position bias against ours."""

from collections.abc import Callable
from itertools import product

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor

from benchmarks.measure import ROOT, Case
from benchmarks.plain import TINY, use_plain_attention

MODEL_FILES = {
    'segmentation': 'configs/_base_/models/upernet_mcbeit_vit-base-p16.py',
    'detection': 'configs/_base_/models/mask-rcnn_mcbeit-vit-base-p16_fpn.py',
}
SIZES = dict(segmentation=512, detection=1024)


def cases(device: str, quick: bool) -> list[Case]:
    """Training (forward, backward) and inference of the ViT-B backbones at their configs' sizes."""
    batch = 2 if device == 'cuda' else 1
    common = dict(
        items=batch,
        rounds=2 if device == 'cpu' else None,  # seconds each
        dtype=torch.bfloat16 if device == 'cuda' else torch.float32,
    )
    found = []
    for (task, size), train in product(SIZES.items(), (True, False)):
        size = size // 4 if quick else size
        name = f'{task} backbone, {"training" if train else "inference"}, B={batch}, {size} px'
        settings = dict(task=task, size=size, train=train, batch=batch, quick=quick)
        found.append(Case(name, build, settings, **common))
    return found


def build(
    side: str, device: str, task: str, size: int, train: bool, batch: int, quick: bool
) -> Callable[[], Tensor]:
    """One pass over random images."""
    torch.manual_seed(0)
    config = Config.fromfile(ROOT / MODEL_FILES[task]).model.backbone
    config.update(init_cfg=None, drop_path_rate=0.0, img_size=size)
    if quick:
        config.update(arch=dict(TINY, num_layers=4), out_indices=[0, 1, 2, 3])
        if task == 'detection':
            config.pop('out_indices')
    model = MODELS.build(config).to(device).train(train)
    if side == 'plain':
        use_plain_attention(model)
    images = torch.randn(batch, 3, size, size, device=device)

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        half = torch.autocast(device, torch.bfloat16, enabled=device == 'cuda')
        with torch.set_grad_enabled(train), half:
            total = sum(x.float().square().mean() for x in model(images))
        if train:
            total.backward()
        return total.detach()

    return run
