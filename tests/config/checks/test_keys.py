"""Misspelt keys are refused with a proposal; configs that work are not."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config

import mcbeit_mm  # noqa: F401  registers what the configs name
from mcbeit_mm.config.checks.keys import check_keys, class_arguments

CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
PRETRAIN = ROOT / 'configs/demo/mcbeit_vit-micro-p16_demo.py'
SEGMENTATION = ROOT / 'configs/demo/mcbeit_vit-micro-p16_segmentation_demo.py'
DETECTION = ROOT / 'configs/demo/mcbeit_vit-micro-p16_detection_demo.py'
UPSTREAM = [
    'mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet/detr/detr_r50_8xb2-150e_coco.py',
    'mmdet/dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'mmdet/timm_example/retinanet_timm-efficientnet-b1_fpn_1x_coco.py',
    'mmdet/vfnet/vfnet_r50_fpn_1x_coco.py',
    'mmpretrain/beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py',
    'mmpretrain/mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
    'mmpretrain/swin_transformer/swin-tiny_16xb64_in1k.py',
    'mmseg/upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py',
    'mmseg/mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py',
]
MISTAKES = [
    (PRETRAIN, 'model.head.tua', 1, r'model\.head\.tua: MCBEiTHead takes no .*did you mean tau'),
    (PRETRAIN, 'model.backbone.droppath_rate', 0.1, 'did you mean drop_path_rate'),
    (PRETRAIN, 'train_dataloader.dataset.pipeline.1.second_sise', 64, 'did you mean second_size'),
    (PRETRAIN, 'train_dataloader.dataset.dataroot', 'x', 'did you mean data_root'),
    (PRETRAIN, 'train_dataloader.sampler.shufle', True, 'did you mean shuffle'),
    (PRETRAIN, 'train_dataloader.batchsize', 8, 'a data loader takes no .*did you mean batch_size'),
    (PRETRAIN, 'optim_wrapper.optimizer.weight_dacay', 0.1, 'did you mean weight_decay'),
    (PRETRAIN, 'optim_wrapper.accumulate_counts', 2, 'did you mean accumulative_counts'),
    (PRETRAIN, 'optim_wrapper.clip_grad.max_nrom', 1, 'clip_grad_norm_ takes no'),
    (PRETRAIN, 'param_scheduler.0.warmpu', 3, 'did you mean warmup'),
    (PRETRAIN, 'train_cfg.max_epoch', 3, 'did you mean max_epochs'),
    (PRETRAIN, 'default_hooks.checkpoint.max_keep_chkpts', 3, 'did you mean max_keep_ckpts'),
    (PRETRAIN, 'default_hooks.chekpoint', dict(type='CheckpointHook'), 'did you mean checkpoint'),
    (PRETRAIN, 'default_hooks.numeric', dict(limit=3), 'default_hooks.numeric has no type'),
    (PRETRAIN, 'custom_hooks.0.intervall', 3, 'takes no .intervall.'),
    (PRETRAIN, 'train_datalaoder', dict(), 'did you mean train_dataloader'),
    (PRETRAIN, 'modle', dict(), 'did you mean model'),
    (SEGMENTATION, 'model.decode_head.loss_decode.loss_wieght', 1, 'did you mean loss_weight'),
    (SEGMENTATION, 'val_evaluator.iou_metric', 1, 'did you mean iou_metrics'),
    (DETECTION, 'model.roi_head.bbox_head.num_clases', 1, 'did you mean num_classes'),
    (DETECTION, 'model.train_cfg.rpn.assigner.pos_iou_th', 1, 'did you mean pos_iou_thr'),
    (DETECTION, 'optim_wrapper.paramwise_cfg.norm_decay_mul', 0, 'did you mean norm_decay_mult'),
]  # fmt: skip


@pytest.mark.parametrize('path, key, value, message', MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_misspelt_key_is_refused_with_a_proposal(path, key, value, message):
    cfg = Config.fromfile(path)
    node = cfg
    *parents, last = key.split('.')
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value
    with pytest.raises(ValueError, match=message):
        check_keys(cfg)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_no_false_alarm_for_shipped_configs(path, monkeypatch):
    for scale in ('in1k', 'photos') if path.parent.name == 'ablations' else ('in1k',):
        monkeypatch.setenv('MCBEIT_ABLATION', scale)
        check_keys(Config.fromfile(path))


@pytest.mark.parametrize('name', UPSTREAM)
def test_no_false_alarm_for_upstream_configs(name, tmp_path):
    """As bases of a user's config, which may define what it likes at the top level."""
    library, _, path = name.partition('/')
    path = Path(find_spec(library).origin).parent / '.mim/configs' / path
    config = tmp_path / 'user.py'
    config.write_text(f"_base_ = '{path}'\nmax_epochs = 3\ngrid = 14\nnum_classes = 2\n")
    check_keys(Config.fromfile(config))


def test_what_builders_take_out_is_known():
    cfg = Config.fromfile(PRETRAIN)
    cfg.custom_hooks[0].priority = 'LOW'
    cfg.custom_hooks[0]._scope_ = 'mmpretrain'
    cfg.train_dataloader.num_batch_per_epoch = 4
    cfg.train_dataloader.batch_sampler = None
    cfg.model.backbone.init_cfg = [dict(type='TruncNormal', layer='Linear', std=0.02)]
    cfg.train_cfg = dict(by_epoch=True, max_epochs=3)
    check_keys(cfg)


class Base:
    def __init__(self, a, b=1):
        pass


class NoArguments:
    pass


class HandsOn(Base):
    def __init__(self, c, **kwargs):
        self.d = kwargs.pop('d', None)
        super().__init__(**kwargs)


class UsesElsewhere(Base):
    def __init__(self, c, **kwargs):
        super().__init__(**kwargs)
        self.options = dict(**kwargs)


class Swallows(Base):
    def __init__(self, c, **options):
        super().__init__(c)


@pytest.mark.parametrize(
    'kind, names',
    [
        (Base, 'a b'),
        (HandsOn, 'a b c d'),
        (UsesElsewhere, 'c **'),
        (Swallows, 'c **'),
        (NoArguments, ''),
        (lambda x, y=1: None, 'x y'),
        (lambda x, **rest: None, 'x **'),
    ],
)
def test_arguments_along_the_inheritance(kind, names):
    assert class_arguments(kind) == frozenset(names.split())
