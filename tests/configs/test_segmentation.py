"""Segmentation: the authors' pyramid, their parameter groups and schedule, one step per config."""

import re

import numpy as np
import pytest
import torch
from config_files import load
from conftest import ROOT, backbone_from, relative_error
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

import mcbeit_mm  # noqa: F401  (before mmseg: serves mmcv's missing ops)
from mcbeit_mm.config import launch

CONFIGS = sorted((ROOT / 'configs/segmentation').glob('*.py'))
NAME = re.compile(
    r'mcbeit_vit-(?P<arch>[a-z]+)-p(?P<patch>\d+)(?P<ft>-ft)?_upernet'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<cp>-ckpt)?-(?P<precision>amp|bf16)-(?P<thousands>\d+)k'
    r'_(?P<data>ade20k|custom)-(?P<height>\d+)x(?P<width>\d+)'
)
PRECISION = dict(amp='AmpOptimWrapper', bf16='Bf16OptimWrapper')
DIMS = dict(tiny=192, small=384, base=768, large=1024)
AUTHORS = 'mcbeit_vit-base-p16_upernet_8xb2-amp-160k_ade20k-512x512.py'
CLASSES = ('red', 'stripes', 'sky')

by_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def _mmseg_scope():
    """Mmseg's classes are found by their short names only within its scope."""
    init_default_scope('mmseg')


def write_scene(root, split, name, size=(64, 64), seed=0):
    """A photo of sky over stripes with one red quarter, and its mask: k is the k-th class."""
    rng = np.random.default_rng(seed)
    height, width = size
    mask = np.full(size, 3, np.uint8)
    mask[height // 2 :] = 2
    photo = np.full((*size, 3), (90, 140, 220), np.uint8)
    photo[height // 2 :] = np.where(np.arange(width)[None, :, None] // 4 % 2, 200, 40)
    top, left = (half * rng.integers(2) for half in (height // 2, width // 2))
    box = slice(top, top + height // 2), slice(left, left + width // 2)
    photo[box], mask[box] = (220, 40, 40), 1
    mask[:2] = 0
    for folder, array, suffix in (('images', photo, 'jpg'), ('annotations', mask, 'png')):
        path = root / folder / split / f'{name}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Four training and two validation scenes of 64 px in ADE20K's layout."""
    folder = tmp_path_factory.mktemp('scenes')
    for i in range(4):
        write_scene(folder, 'training', f'{i}', seed=i)
    for i in range(2):
        write_scene(folder, 'validation', f'{i}', seed=i)
    (folder / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    return folder


def tiny(path, data_root, work_dir, **backbone):
    """A config at 64 px with a 4-block backbone, on the CPU, otherwise unchanged."""
    cfg = load(path, MCBEIT_DATA=str(data_root))
    model, dims, crop = cfg.model, 32, (64, 64)
    arch = dict(embed_dims=dims, num_layers=4, num_heads=2, feedforward_channels=64)
    model.backbone.update(arch=arch, img_size=64, out_indices=[0, 1, 2, 3], init_cfg=None)
    model.backbone.update(backbone)
    model.data_preprocessor.update(size=crop, test_cfg=dict(size=crop, size_divisor=None))
    model.test_cfg.update(crop_size=crop, stride=(43, 43))
    model.neck.embed_dim = dims
    model.decode_head.update(in_channels=[dims] * 4, channels=16)
    model.auxiliary_head.update(in_channels=dims, channels=8)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg[name]
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
        loader.dataset.data_root = str(data_root)
        if loader.dataset.type == 'BaseSegDataset':
            loader.dataset.metainfo = dict(classes=str(data_root / 'classes.txt'))
        for step in loader.dataset.pipeline:
            step.update(
                {k: v for k, v in dict(scale=(256, 64), crop_size=crop).items() if k in step}
            )
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':  # fp16 needs a GPU
        launch.set_precision(cfg, 'bf16')
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.param_scheduler[0].start_factor = 1.0  # a first step that float32 can see
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'ERROR'
    return cfg


def test_pyramid_equals_the_authors(golden):
    from mmseg.models.necks import Feature2Pyramid

    arrays = golden('seg')
    sizes, state = arrays.sizes, arrays.group('state')
    backbone = backbone_from(
        sizes,
        rel_pos='per_block',
        out_type='featmap',
        final_norm=False,
        out_indices=sizes['out_indices'],
    ).eval()
    neck = Feature2Pyramid(sizes['embed_dim'], norm_cfg=dict(type='BN')).eval()
    renamed = {
        k.replace('fpn1.', 'upsample_4x.').replace('fpn2.', 'upsample_2x.'): v
        for k, v in state.items()
        if k.startswith('fpn')
    }
    neck.load_state_dict(renamed)
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith('fpn')})
    with torch.no_grad():
        maps = neck(backbone(arrays['image']))
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    for i, got in enumerate(maps):
        assert relative_error(got, arrays[f'out{i}']) <= 1e-5


def optimizer_of(cfg):
    model = MODELS.build(cfg.model)
    return model, build_optim_wrapper(model, cfg.optim_wrapper)


def authors_with_narrow_blocks():
    """The authors' config with all 12 blocks, 8 channels wide."""
    cfg = load(f'segmentation/{AUTHORS}')
    arch = dict(embed_dims=8, num_layers=12, num_heads=1, feedforward_channels=8)
    cfg.model.backbone.update(arch=arch, init_cfg=None)
    cfg.model.neck.embed_dim = cfg.model.auxiliary_head.in_channels = 8
    cfg.model.decode_head.update(in_channels=[8] * 4, channels=8)
    cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


def test_groups_of_the_authors_recipe():
    model, wrapper = optimizer_of(authors_with_narrow_blocks())
    groups = {id(p): g for g in wrapper.optimizer.param_groups for p in g['params']}
    scale = {n: groups[id(p)]['lr_scale'] for n, p in model.named_parameters()}
    decay = {n: groups[id(p)]['weight_decay'] for n, p in model.named_parameters()}
    assert scale['backbone.patch_embed.proj.weight'] == pytest.approx(0.2542, abs=5e-5)
    assert scale['backbone.cls_token'] == pytest.approx(0.2542, abs=5e-5)
    assert scale['backbone.blocks.0.attn.qkv.weight'] == pytest.approx(0.2824, abs=5e-5)
    assert scale['backbone.blocks.11.attn.relative_position_bias_table'] == pytest.approx(0.9)
    rest = [n for n in scale if not n.startswith('backbone.')]
    assert {n.split('.')[0] for n in rest} == {'neck', 'decode_head', 'auxiliary_head'}
    assert all(scale[n] == 1.0 for n in rest)
    assert decay['backbone.cls_token'] == 0  # in the authors' runs it is decayed by accident
    assert decay['backbone.blocks.3.attn.relative_position_bias_table'] == 0.05
    for name, param in model.named_parameters():
        undecayed = param.ndim == 1 or name.endswith(('.bias', 'cls_token'))
        assert decay[name] == (0.0 if undecayed else 0.05), name


def test_learning_rate_is_that_of_mmcv_1():
    """Poly over all iterations, times a warm-up that mmcv 1.x applies to the decayed rate."""
    cfg = authors_with_narrow_blocks()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer))
        for s in cfg.param_scheduler
    ]
    end, warmup = cfg.train_cfg.max_iters, 1500
    wanted = {0, 1, 700, 1499, 1500, 1501, 80000, end - 1}
    for i in range(end):
        if i in wanted:
            expected = 8e-5 * (1 - i / end)
            if i < warmup:
                expected *= 1 - (1 - i / warmup) * (1 - 1e-6)
            assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, rel=1e-6), i
        for scheduler in schedulers:
            scheduler.step()


@by_config
def test_name_agrees_with_content(path):
    match = NAME.fullmatch(path.stem)
    assert match, 'name does not follow the scheme'
    name, cfg = match.groupdict(), load(path)
    model, backbone = cfg.model, cfg.model.backbone
    dims, arch = DIMS[name['arch']], backbone.arch
    assert (arch.embed_dims if name['arch'] == 'tiny' else arch) in (dims, name['arch'])
    assert model.neck.embed_dim == model.auxiliary_head.in_channels == dims
    assert list(model.decode_head.in_channels) == [dims] * 4
    depth = 24 if name['arch'] == 'large' else 12
    assert len(backbone.out_indices) == 4 and backbone.out_indices[-1] == depth - 1
    assert backbone.patch_size == int(name['patch'])
    assert backbone.get('with_cp', False) == bool(name['cp'])
    assert (backbone.out_type, backbone.final_norm, backbone.rel_pos) == (
        'featmap',
        False,
        'per_block',
    )
    crop = (int(name['height']), int(name['width']))
    side = crop[0]
    assert side == crop[1] == backbone.img_size
    assert model.data_preprocessor['size'] == model.data_preprocessor.test_cfg['size'] == crop
    assert model.test_cfg.crop_size == crop
    assert model.test_cfg.stride == (side * 2 // 3,) * 2  # BEiT: 341 of 512, 426 of 640
    train = {s.type: s for s in cfg.train_dataloader.dataset.pipeline}
    test = {s.type: s for s in cfg.test_dataloader.dataset.pipeline}
    assert train['RandomCrop'].crop_size == crop
    assert train['RandomResize'].scale == test['Resize'].scale == (4 * side, side)
    batch, iters = int(name['batch']), int(name['thousands']) * 1000
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * batch
    assert cfg.optim_wrapper.type == PRECISION[name['precision']]
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == 1
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end - 1 == iters
    assert iters % cfg.train_cfg.val_interval == 0
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    dataset = dict(ade20k='ADE20KDataset', custom='BaseSegDataset')[name['data']]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type == dataset and loader.dataset.reduce_zero_label
    norm = 'BN' if name['gpus'] == '1' else 'SyncBN'
    for part in (model.neck, model.decode_head, model.auxiliary_head):
        assert part.norm_cfg.type == norm


def test_custom_classes_are_counted_once(scenes):
    for path in CONFIGS:
        if 'custom' in path.stem:
            cfg = load(path, MCBEIT_DATA=str(scenes))
            heads = cfg.model.decode_head, cfg.model.auxiliary_head
            assert [head.num_classes for head in heads] == [len(CLASSES)] * 2
            dataset = DATASETS.build(cfg.val_dataloader.dataset)
            assert tuple(dataset.metainfo['classes']) == CLASSES
            labels = dataset[0]['data_samples'].gt_sem_seg.data.unique().tolist()
            assert labels == [0, 1, 2, 255]


@by_config
def test_one_step_and_validation(path, scenes, tmp_path, monkeypatch):
    cfg = tiny(path, scenes, tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    losses, train_step = [], runner.model.train_step

    def record(*args, **kwargs):
        losses.append(train_step(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(runner.model, 'train_step', record)
    runner.train()
    assert set(losses[0]) >= {'loss', 'decode.loss_ce', 'aux.loss_ce'}
    assert all(torch.isfinite(value).all() for value in losses[0].values())
    assert losses[0]['loss'].dtype == torch.float32
    still = [n for n, p in runner.model.named_parameters() if torch.equal(p, before[n])]
    assert not still
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100


@pytest.mark.parametrize('mode', ['slide', 'whole'])
@pytest.mark.parametrize('size', [(333, 500), (250, 70)])
def test_any_photo_size_is_segmented(mode, size, scenes, tmp_path):
    """Sides that are no multiple of the patch, larger and smaller than a crop."""
    from mmseg.apis import inference_model

    cfg = tiny(ROOT / 'configs/segmentation' / AUTHORS, scenes, tmp_path)
    cfg.model.test_cfg.update(mode=mode, crop_size=(256, 256), stride=(170, 170))
    cfg.model.data_preprocessor.test_cfg.size = (256, 256)
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = len(CLASSES)
    if mode == 'whole':
        cfg.model.data_preprocessor.test_cfg = dict(size=None, size_divisor=16)
    cfg.test_pipeline = [s for s in cfg.test_dataloader.dataset.pipeline if s.type != 'Resize']
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    model.cfg = cfg
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    result = inference_model(model, photo)
    assert result.pred_sem_seg.data.shape == (1, *size)
    assert torch.isfinite(result.seg_logits.data).all()


@pytest.mark.slow
def test_memorizes_eight_scenes(tmp_path):
    for split in ('training', 'validation'):
        for i in range(8):
            write_scene(tmp_path, split, f'{i}', seed=i)
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    path = next(p for p in CONFIGS if 'vit-tiny' in p.stem)
    cfg = tiny(path, tmp_path, tmp_path / 'work', drop_path_rate=0.0, layer_scale_init_value=1.0)
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == 'RandomResize':
            step.ratio_range = (1.0, 1.0)
    iters = 250
    cfg.train_cfg.update(max_iters=iters, val_interval=iters)
    cfg.param_scheduler[1].end = iters + 1
    cfg.optim_wrapper.optimizer.lr = 4e-3
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 95
