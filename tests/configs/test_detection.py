"""Detection configs: names, schedules, parameter groups, and a training step of each."""

import copy
import json
import math
import re

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

pytest.importorskip('mmdet')
from config_files import load
from mmengine.registry import (
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    PARAM_SCHEDULERS,
    init_default_scope,
)
from mmengine.runner import Runner
from torch import nn

from mcbeit_mm.detection import MCBEiTDetViT

CONFIGS = sorted((ROOT / 'configs/detection').glob('*.py'))
BASE = ROOT / (
    'configs/detection/mask-rcnn_mcbeit-vit-base-p16_fpn_32xb2-amp-lsj-25e_coco-1024x1024.py'
)
SMALL = ROOT / (
    'configs/detection/mask-rcnn_mcbeit-vit-tiny-p16_fpn_1xb4-bf16-lsj-30e_custom-320px.py'
)
PRECISION = dict(amp='AmpOptimWrapper', bf16='Bf16OptimWrapper', fp32='OptimWrapper')
NAME = re.compile(
    r'(?P<head>mask-rcnn|cascade-mask-rcnn)_mcbeit-vit-(?P<arch>tiny|base|large)-p(?P<patch>\d+)'
    r'(?P<ft>-ft)?_fpn_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<cp>-ckpt)?-(?P<precision>amp|bf16|fp32)'
    r'-(?P<jitter>lsj|ms)-(?P<epochs>\d+)e_(?P<data>coco|custom)-(?P<size>\d+x\d+|\d+px)'
)
DIMS = dict(base=768, large=1024)


# --- contents -----------------------------------------------------------------------------------


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_name_agrees_with_content(path):
    match = NAME.fullmatch(path.stem)
    assert match, 'name does not follow the scheme'
    name = match.groupdict()
    cfg = load(path)
    model, backbone = cfg.model, cfg.model.backbone
    assert model.type == ('CascadeRCNN' if name['head'].startswith('cascade') else 'MaskRCNN')
    if name['arch'] == 'tiny':
        assert backbone.arch.embed_dims == 192 and backbone.arch.num_layers == 12
        dims = 192
    else:
        assert backbone.arch == name['arch']
        dims = DIMS[name['arch']]
    assert model.neck.in_channels == [dims] * 4
    assert backbone.patch_size == int(name['patch'])
    assert backbone.rel_pos == ('per_block' if name['ft'] else 'shared')
    assert backbone.get('with_cp', False) == bool(name['cp'])
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * int(name['batch'])
    assert cfg.optim_wrapper.type == PRECISION[name['precision']]
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == int(name['epochs'])
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    side = int(re.match(r'\d+', name['size'])[0])
    resize = cfg.test_dataloader.dataset.pipeline[1]
    assert resize.keep_ratio and min(resize.scale) == side
    if name['jitter'] == 'lsj':
        assert 'RandomCrop' in kinds
        assert model.data_preprocessor.pad_size_divisor == backbone.img_size == side
    else:
        assert 'RandomChoiceResize' in kinds
    norms = set(re.findall(r"'norm_cfg': \{'type': '(\w+)'", str(cfg.model.to_dict())))
    assert norms == ({'SyncBN'} if int(name['gpus']) > 1 else {'GN'})


def test_large_gives_a_map_after_each_quarter():
    path = next(p for p in CONFIGS if 'large' in p.stem)
    config = load(path).model.backbone
    assert (config.layer_scale_init_value, config.with_cp) == (1e-5, True)
    with torch.device('meta'):
        backbone = MCBEiTDetViT('large', img_size=1024)
    assert tuple(backbone.global_blocks) == (5, 11, 17, 23)


def test_data_and_weights_come_from_two_variables():
    variables = dict(MCBEIT_DATA='/somewhere/coco', MCBEIT_WEIGHTS='/somewhere/weights.pth')
    for path in CONFIGS:
        cfg = load(path, **variables)
        assert cfg.train_dataloader.dataset.data_root == '/somewhere/coco'
        assert cfg.test_evaluator.ann_file.startswith('/somewhere/coco/annotations/')
        assert cfg.model.backbone.init_cfg.checkpoint == '/somewhere/weights.pth'


# --- optimization -------------------------------------------------------------------------------


@pytest.mark.parametrize('epochs', [25, 100])
def test_learning_rate_is_detectron2s(epochs):
    path = next(p for p in CONFIGS if f'base-p16_fpn_32xb2-amp-lsj-{epochs}e' in p.stem)
    cfg = load(path)
    per_epoch = 184  # a tenth of theirs
    total, warmup, peak = epochs * per_epoch, 46, 8e-5
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(config), default_args=dict(optimizer=optimizer, epoch_length=per_epoch)
        )
        for config in cfg.param_scheduler
    ]
    checked = {0, 1, warmup - 1, warmup, total // 2, total - 1}
    for step in range(total):
        if step in checked:
            cosine = (1 + math.cos(math.pi * step / total)) / 2
            # MMEngine's warm-up ends one step before detectron2's.
            factor = min(0.001 + 0.999 * step / (warmup - 1), 1)
            assert optimizer.param_groups[0]['lr'] == pytest.approx(
                peak * factor * cosine, rel=1e-6
            )
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert optimizer.param_groups[0]['lr'] < 1e-6 * peak


def shrink(config, width=32):
    """The same model with few channels and two classes."""
    if isinstance(config, list | tuple):
        for item in config:
            shrink(item, width)
    elif isinstance(config, dict):
        for key, value in config.items():
            if key.endswith(('in_channels', 'out_channels', 'feat_channels')):
                config[key] = [width] * 4 if isinstance(value, list) else width
            elif key == 'num_groups':
                config[key] = 8
            elif key == 'num_classes':
                config[key] = 2
            else:
                shrink(value, width)
    return config


def tiny(cfg, side=64):
    model = shrink(cfg.model)
    layers = 4
    arch = dict(embed_dims=32, num_layers=layers, num_heads=2, feedforward_channels=64)
    model.backbone.update(arch=arch, img_size=side, window_size=2, init_cfg=None)
    model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=30)
    rcnn = model.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = 16
    model.test_cfg.rpn.update(nms_pre=50, max_per_img=30)
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    preprocessor = model.data_preprocessor
    preprocessor.pad_size_divisor = min(preprocessor.pad_size_divisor, side)
    return cfg


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
def test_only_norms_and_positions_escape_weight_decay(rel_pos):
    init_default_scope('mmdet')
    cfg = tiny(load(BASE))
    cfg.model.backbone.rel_pos = rel_pos
    model = MODELS.build(cfg.model)
    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')
    paramwise = wrapper.pop('paramwise_cfg')
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='DefaultOptimWrapperConstructor',
            optim_wrapper_cfg=wrapper,
            paramwise_cfg=paramwise,
        )
    )
    groups = constructor(model).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert {group['lr'] for group in groups} == {8e-5}
    norm_kinds = (nn.LayerNorm, nn.GroupNorm, nn.SyncBatchNorm)
    norms = {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, norm_kinds)
        for name, _ in module.named_parameters()
    }
    assert len(norms) > 20
    decayed = set()
    for name, param in model.named_parameters():
        free = name in norms or name.endswith(('pos_embed', 'relative_position_bias_table'))
        assert decay[id(param)] == (0.0 if free else 0.1), name
        if not free:
            decayed.add(name.rpartition('.')[2])
    assert decayed >= {'weight', 'bias', 'gamma_1', 'gamma_2', 'q_bias', 'v_bias'}


# --- training -----------------------------------------------------------------------------------


def write_coco(root, count, seed=0, side=(60, 90), split='train2017'):
    """Photos of noise with one bright rectangle or dark ellipse each, in COCO's layout."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    (root / split).mkdir(parents=True)
    for index in range(count):
        height, width = (int(n) for n in generator.integers(*side, 2))
        picture = generator.integers(90, 130, (height, width, 3), dtype=np.uint8)
        w, h = int(width * generator.uniform(0.4, 0.6)), int(height * generator.uniform(0.4, 0.6))
        x, y = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
        kind = index % 2
        mask = np.zeros((height, width), np.uint8)
        if kind:
            center, axes = (x + w // 2, y + h // 2), (w // 2, h // 2)
            cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
        else:
            mask[y : y + h, x : x + w] = 1
        picture[mask > 0] = (30, 40, 20) if kind else (240, 220, 250)
        cv2.imwrite(str(root / split / f'{index}.png'), picture)
        images.append(dict(id=index, file_name=f'{index}.png', height=height, width=width))
        annotations.append(annotation(index, kind, mask))
    categories = [dict(id=1, name='person'), dict(id=3, name='car')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations').mkdir(exist_ok=True)
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def annotation(index, kind, mask):
    """One object with its mask as uncompressed RLE."""
    flat = mask.flatten(order='F')
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=1 - flat[-1])))
    counts = [0] * int(flat[0]) + runs.tolist()
    ys, xs = mask.nonzero()
    box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    return dict(
        id=index + 1,
        image_id=index,
        category_id=(1, 3)[kind],
        bbox=[int(v) for v in box],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(counts=counts, size=list(mask.shape)),
    )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    write_coco(root, 4)
    write_coco(root, 2, seed=1, split='val2017')
    return root


def runnable(path, data, work_dir, side=64):
    """A config at toy size on the CPU; only sizes, precision and workers differ from the file."""
    cfg = tiny(load(path, MCBEIT_DATA=str(data)), side)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
        for step in loader.dataset.pipeline:
            if 'scale' in step:
                step.scale = (side, side)
            if 'scales' in step:
                step.scales = [(side + 32, side - 16), (side + 32, side)]
            if 'crop_size' in step:
                step.crop_size = (side, side)
    cfg.train_dataloader.batch_size = 2
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.param_scheduler = None  # four images have no quarter of an epoch
    cfg.optim_wrapper.type = 'Bf16OptimWrapper'
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = []
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'WARNING'
    return cfg


TRAINED = [path for path in CONFIGS if '100e' not in path.stem]  # but for its length the 25e one


@pytest.mark.parametrize('path', TRAINED, ids=lambda p: p.stem)
def test_trains_and_evaluates(path, data, tmp_path):
    runner = Runner.from_cfg(runnable(path, data, tmp_path))
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    scalars = runner.message_hub.log_scalars
    for name in ('loss', 'loss_rpn_cls', 'loss_rpn_bbox'):
        values = scalars[f'train/{name}'].data[0]
        assert len(values) == 2 and np.isfinite(values).all(), name
        # A random crop may hold no anchor that is to be moved.
        assert values.max() > 0 if name == 'loss_rpn_bbox' else values.min() > 0, name
    for part in ('backbone', 'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head'):
        changed = [
            not torch.equal(p, before[name])
            for name, p in runner.model.named_parameters()
            if name.startswith(part)
        ]
        assert changed and sum(changed) > 0.6 * len(changed), part
    metrics = runner.message_hub.log_scalars
    assert {'val/coco/bbox_mAP', 'val/coco/segm_mAP'} <= set(metrics)


def test_the_classes_are_those_of_the_annotations(data):
    cfg = load(SMALL, MCBEIT_DATA=str(data))
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == ['person', 'car']


@pytest.mark.slow
def test_overfits_six_images(tmp_path):
    write_coco(tmp_path, 6, side=(90, 128))
    write_coco(tmp_path, 6, side=(90, 128), split='val2017')  # the same
    cfg = runnable(SMALL, tmp_path, tmp_path / 'work', side=128)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [step for step in pipeline if 'Random' not in step.type]
    cfg.train_dataloader.dataset.pipeline.insert(2, cfg.val_dataloader.dataset.pipeline[1])
    cfg.model.backbone.update(window_size=4, layer_scale_init_value=1.0)
    cfg.optim_wrapper.optimizer.update(lr=2e-3)
    cfg.param_scheduler = [
        dict(type='WarmupCosineLR', warmup=10, end=240, by_epoch=False, eta_min_ratio=0.01)
    ]
    cfg.train_cfg.update(max_epochs=80, val_interval=80)
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = {k: v.current() for k, v in runner.message_hub.log_scalars.items() if 'mAP' in k}
    assert found['val/coco/bbox_mAP_50'] >= 0.9, found
    assert found['val/coco/segm_mAP_50'] >= 0.9, found
