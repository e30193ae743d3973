"""Misspelled keys are refused with a suggestion; working configs are not."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from config_files import CONFIGS, load
from mmengine.config import Config
from torch import nn

import mcbeit_mm  # noqa: F401  registers what the configs name
from mcbeit_mm.config.checks.keys import check_keys, check_option, class_arguments

PRETRAIN = 'demo/mcbeit_vit-micro-p16_demo.py'
SEGMENTATION = 'demo/mcbeit_vit-micro-p16_segmentation_demo.py'
DETECTION = 'demo/mcbeit_vit-micro-p16_detection_demo.py'
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
    (PRETRAIN, 'model.head.tua', 1, r"model\.head has no key 'tua'; did you mean tau"),
    (PRETRAIN, 'model.backbone.droppath_rate', 0.1, 'did you mean drop_path_rate'),
    (PRETRAIN, 'model.head.something', 1, "has no key 'something'; it takes .*detach_affinity"),
    (PRETRAIN, 'train_dataloader.dataset.pipeline.1.second_sise', 64, 'did you mean second_size'),
    (PRETRAIN, 'train_dataloader.dataset.dataroot', 'x', 'did you mean data_root'),
    (PRETRAIN, 'train_dataloader.sampler.shufle', True, 'did you mean shuffle'),
    (PRETRAIN, 'train_dataloader.batchsize', 8, 'did you mean batch_size'),
    (PRETRAIN, 'optim_wrapper.optimizer.weight_dacay', 0.1, 'did you mean weight_decay'),
    (PRETRAIN, 'optim_wrapper.accumulate_counts', 2, 'did you mean accumulative_counts'),
    (PRETRAIN, 'optim_wrapper.clip_grad.maximum', 1, r"clip_grad has no key 'maximum'"),
    (PRETRAIN, 'param_scheduler.0.warmpu', 3, 'did you mean warmup'),
    (PRETRAIN, 'train_cfg.max_epoch', 3, 'did you mean max_epochs'),
    (PRETRAIN, 'default_hooks.checkpoint.max_keep_chkpts', 3, 'did you mean max_keep_ckpts'),
    (PRETRAIN, 'default_hooks.chekpoint', dict(type='CheckpointHook'), 'did you mean checkpoint'),
    (PRETRAIN, 'custom_hooks.0.intervall', 3, "no key 'intervall'"),
    (PRETRAIN, 'train_datalaoder', dict(), 'did you mean train_dataloader'),
    (PRETRAIN, 'modle', dict(), 'did you mean model'),
    (SEGMENTATION, 'model.decode_head.loss_decode.loss_wieght', 1, 'did you mean loss_weight'),
    (SEGMENTATION, 'val_evaluator.iou_metric', 1, 'did you mean iou_metrics'),
    (DETECTION, 'model.roi_head.bbox_head.num_clases', 1, 'did you mean num_classes'),
    (DETECTION, 'model.train_cfg.rpn.assigner.pos_iou_th', 1, 'did you mean pos_iou_thr'),
    (DETECTION, 'optim_wrapper.paramwise_cfg.norm_decay', 0, 'did you mean norm_decay_mult'),
]  # fmt: skip
UNTYPED = ('optim_wrapper.clip_grad', 'optim_wrapper.paramwise_cfg')
TAKEN = [
    (DETECTION, f'model.test_cfg.{stage}.nms.{key}')
    for stage in ('rpn', 'rcnn')
    for key in ('class_agnostic', 'max_num', 'split_thr')
] + [
    (DETECTION, 'model.roi_head.bbox_head.loss_cls.bg_cls_weight'),  # a parent removes it
    (PRETRAIN, 'model.backbone.with_cp'),
    (PRETRAIN, 'train_dataloader.dataset.test_mode'),  # an argument of the base class
    (PRETRAIN, 'train_dataloader.num_batch_per_epoch'),
    (PRETRAIN, 'find_unused_parameters'),
    (PRETRAIN, 'custom_hooks.0.priority'),
]


def parent_of(cfg, key):
    """Node and last part of a dotted key."""
    *parents, last = key.split('.')
    for part in parents:
        cfg = cfg[int(part)] if isinstance(cfg, list) else cfg[part]
    return cfg, last


@pytest.mark.parametrize('path, key, value, message', MISTAKES, ids=[m[1] for m in MISTAKES])
def test_misspelled_keys_are_refused_with_a_suggestion(path, key, value, message):
    cfg = load(path)
    if not key.startswith(UNTYPED):
        with pytest.raises(ValueError, match=message):
            check_option(cfg, key)
    node, last = parent_of(cfg, key)
    node[last] = value
    with pytest.raises(ValueError, match=message):
        check_keys(cfg)


@pytest.mark.parametrize('path, key', TAKEN, ids=[key for _, key in TAKEN])
def test_keys_that_a_class_takes_pass(path, key):
    cfg = load(path)
    check_option(cfg, key)
    node, last = parent_of(cfg, key)
    node[last] = 1
    check_keys(cfg)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_pass(path):
    for scale in ('in1k', 'photos') if path.parent.name == 'ablations' else ('in1k',):
        check_keys(load(path, MCBEIT_ABLATION=scale))


@pytest.mark.parametrize('name', UPSTREAM)
def test_upstream_configs_pass(name, tmp_path):
    """As bases of a user's config, which may define any variables at the top level."""
    library, _, path = name.partition('/')
    path = Path(find_spec(library).origin).parent / '.mim/configs' / path
    config = tmp_path / 'user.py'
    config.write_text(f"_base_ = '{path}'\nmax_epochs = 3\ngrid = 14\nnum_classes = 2\n")
    check_keys(Config.fromfile(config))


def test_keys_that_builders_remove_pass():
    cfg = load(PRETRAIN)
    cfg.custom_hooks[0].update(priority='LOW', _scope_='mmpretrain')
    cfg.train_dataloader.batch_sampler = None
    cfg.model.backbone.init_cfg = [dict(type='TruncNormal', layer='Linear', std=0.02)]
    cfg.train_cfg = dict(by_epoch=True, max_epochs=3)
    check_keys(cfg)


@pytest.mark.parametrize(
    'option, hint',
    [
        ('model.bakbone.arch', 'did you mean backbone'),
        ('modle.head.omega', 'did you mean model'),
        ('work_dirr', 'did you mean work_dir'),
        ('something', "the config has no key 'something'"),
        ('param_scheduler.3.end', 'has 1 entries'),
        ('model.head.omega.value', 'is 0.2 and has no key'),
    ],
)
def test_unknown_options_are_refused(option, hint):
    with pytest.raises(ValueError, match=hint):
        check_option(load(PRETRAIN), option)


@pytest.mark.parametrize(
    'scope, dataset, key',
    [
        ('mmpretrain', 'CustomDataset', 'ann_file'),
        ('mmseg', 'ADE20KDataset', 'img_suffix'),
        ('mmdet', 'CocoDataset', 'metainfo'),
    ],
)
def test_classes_are_looked_up_in_the_registry_of_their_library(scope, dataset, key):
    loader = dict(dataset=dict(type=dataset))
    cfg = Config(dict(default_scope=scope, train_dataloader=loader))
    check_option(cfg, f'train_dataloader.dataset.{key}')
    with pytest.raises(ValueError, match=f'has no key .*did you mean {key}'):
        check_option(cfg, f'train_dataloader.dataset.{key}s')


class Base:
    def __init__(self, a, b=1):
        pass


class NoArguments:
    pass


class PassesOn(Base):
    def __init__(self, c, **kwargs):
        super().__init__(**kwargs)


class Ours(Base):
    def __init__(self, c, **kwargs):
        super().__init__(**kwargs)


Ours.__init__.__module__ = 'mcbeit_mm.somewhere'


@pytest.mark.parametrize(
    'kind, names, complete',
    [
        (Base, 'a b', True),
        (NoArguments, '', True),
        (Ours, 'a b c', True),  # **kwargs of this package only go to the next constructor
        (PassesOn, 'a b c', False),
        (nn.Identity, '', False),
        (lambda x, y=1: None, 'x y', True),
        (lambda x, **rest: None, 'x', False),
    ],
)
def test_arguments_along_the_inheritance(kind, names, complete):
    assert class_arguments(kind) == (frozenset(names.split()), complete)
