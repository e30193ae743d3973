"""Tiny backbones with random weights, and a classifier around one."""

import torch
from mmengine.model import BaseModule
from tiny_models import ARCH
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT


def tiny(**kwargs) -> MCBEiTViT:
    """A backbone for pretraining at 64 px."""
    model = MCBEiTViT(ARCH, **(dict(img_size=64) | kwargs)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def finetuned(**kwargs) -> MCBEiTViT:
    """A backbone for classification, with a position table per block."""
    return tiny(**(dict(rel_pos='per_block', out_type='avg_featmap') | kwargs))


class Classifier(BaseModule):
    """A backbone and a head under mmpretrain's names."""

    def __init__(self, backbone: MCBEiTViT, classes: int = 5):
        super().__init__()
        self.backbone, self.head = backbone, nn.Module()
        self.head.fc = nn.Linear(32, classes)


def with_head(model: MCBEiTViT, name: str, classes: int = 7) -> dict[str, torch.Tensor]:
    """The state dict of a backbone and of a random head under an official name."""
    head = {f'{name}.weight': torch.randn(classes, 32), f'{name}.bias': torch.randn(classes)}
    return model.state_dict() | head
