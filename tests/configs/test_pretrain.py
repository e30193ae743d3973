"""Every config loads, and its content agrees with its name."""

import math
import re

import pytest
import torch
from config_files import CONFIGS, load
from mmengine.registry import MODELS, TRANSFORMS
from torchvision.transforms import RandomResizedCrop

PRETRAIN = [path for path in CONFIGS if path.parent.name == 'pretrain']
TOKENIZERS = [path for path in CONFIGS if path.parent.name == 'tokenizer']
PRECISION = dict(amp='AmpOptimWrapper', bf16='Bf16OptimWrapper', fp32='OptimWrapper')
NAME = re.compile(
    r'mcbeit_vit-(?P<arch>[a-z]+)-p(?P<patch>\d+)'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<zero>-zero1)?(?P<cached>-cached)?'
    r'-(?P<precision>amp|bf16|fp32)-coslr-(?P<epochs>\d+)e_(?P<data>in1k|photos)(-(?P<pixels>\d+)px)?'
)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_loads_and_stays_short(path):
    cfg = load(path)
    assert cfg.model.type and cfg.train_dataloader and cfg.optim_wrapper
    assert path.read_text().startswith('"""'), 'a config says what it is'
    lines = path.read_text().count('\n')
    assert lines <= 40 or path.parent.name == 'demo', f'{lines} lines: move shared parts to _base_'


@pytest.mark.parametrize('path', PRETRAIN, ids=lambda p: p.stem)
def test_pretraining_name_agrees_with_content(path):
    match = NAME.fullmatch(path.stem)
    assert match, 'name does not follow the scheme'
    name = match.groupdict()
    cfg = load(path)
    backbone, loader = cfg.model.backbone, cfg.train_dataloader
    if name['arch'] == 'tiny':
        assert backbone.arch.embed_dims == 192 and backbone.arch.num_layers == 12
    else:
        assert backbone.arch == name['arch']
    assert backbone.patch_size == int(name['patch'])
    assert backbone.img_size == int(name['pixels'] or 224)
    sharded = cfg.optim_wrapper.optimizer.type == 'ShardedOptimizer'
    assert sharded == bool(name['zero'])
    assert (cfg.model.target_generator.type == 'CachedTokenizer') == bool(name['cached'])
    assert loader.batch_size == int(name['batch'])
    assert cfg.optim_wrapper.type == PRECISION[name['precision']]
    epochs = int(name['epochs'])
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[0].end == epochs
    assert cfg.param_scheduler[0].warmup < epochs
    total = int(name['gpus']) * loader.batch_size
    assert cfg.auto_scale_lr.base_batch_size == total
    if name['data'] == 'in1k':
        assert total == 2048, "the learning rate is for the authors' batch"
    assert loader.drop_last


@pytest.mark.parametrize('path', PRETRAIN, ids=lambda p: p.stem)
def test_views_masks_and_dims_fit_together(path):
    cfg = load(path)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    mask = steps['RandomPatchMask']
    grid = cfg.model.backbone.img_size // cfg.model.backbone.patch_size
    if 'cached' in path.stem:  # the cache knows the sizes
        assert steps['CachedTargetsCrop'].cache == cfg.model.target_generator.checkpoint
        assert not {'TwoViewRandomResizedCrop', 'RandomFlip'} & set(steps)
    else:
        views = steps['TwoViewRandomResizedCrop']
        assert views.size == cfg.model.backbone.img_size
        assert views.second_size == grid * 8  # stride of an f8 tokenizer
    assert mask.grid_size == grid
    assert mask.mask_ratio == 0.75
    arch = cfg.model.backbone.arch
    dims = (
        arch.embed_dims if isinstance(arch, dict) else dict(small=384, base=768, large=1024)[arch]
    )
    assert cfg.model.head.embed_dims == dims
    assert (cfg.model.head.tau, cfg.model.head.omega) == (4.0, 0.2)


@pytest.mark.parametrize('path', PRETRAIN, ids=lambda p: p.stem)
def test_photos_are_decoded_to_enough_pixels(path):
    steps = {s.type: s for s in load(path).train_dataloader.dataset.pipeline}
    enough = steps['LoadCheckedImage'].get('enough_pixels')
    if 'photos' not in path.stem:
        assert enough is None, "the authors' pixels"
        return
    views = TRANSFORMS.build(steps['TwoViewRandomResizedCrop'])
    size, low = views.targets[0][0][0], views.scale[0]
    assert views.ratio == [3 / 4, 4 / 3]
    assert enough == round(3 * size**2 / (low * 3 / 4))
    enough = math.ceil(enough / 3)  # from here on crops are no smaller than their view
    for aspect in (1, 1.5, 3, 15, 1 / 15):  # short of 1:16 no crop needs the whole short side
        height = math.ceil(math.sqrt(enough / aspect))
        shape = torch.empty(height, math.ceil(enough / height), device='meta')
        for scale in (views.scale, [low, low]):
            crops = [RandomResizedCrop.get_params(shape, scale, views.ratio) for _ in range(300)]
            assert min(min(crop[2:]) for crop in crops) >= min(size, *shape.shape)


def test_final_learning_rate_is_1e_5():
    for path in PRETRAIN:
        cfg = load(path)
        if 'in1k' in path.stem:
            final = cfg.optim_wrapper.optimizer.lr * cfg.param_scheduler[0].eta_min_ratio
            assert final == pytest.approx(1e-5), path.stem


def test_data_and_targets_come_from_variables():
    variables = dict(
        MCBEIT_DATA='/somewhere/photos',
        MCBEIT_TOKENIZER='/somewhere/tokenizer',
        MCBEIT_CACHE='/somewhere/cache',
    )
    for path in PRETRAIN:
        cfg = load(path, **variables)
        assert cfg.train_dataloader.dataset.data_root == '/somewhere/photos'
        source = 'cache' if 'cached' in path.stem else 'tokenizer'
        assert cfg.model.target_generator.checkpoint == f'/somewhere/{source}'


@pytest.mark.parametrize('path', TOKENIZERS, ids=lambda p: p.stem)
def test_tokenizer_name_agrees_with_content(path):
    kind, *numbers = re.fullmatch(
        r'(gumbel|ema)-vqgan_f(\d+)-(\d+)_(\d+)xb(\d+)-(\d+)k_photos-(\d+)px', path.stem
    ).groups()
    stride, codes, gpus, batch, thousands, pixels = map(int, numbers)
    cfg = load(path)
    assert cfg.model.type == dict(gumbel='GumbelVQGANTrainer', ema='EMAVQGANTrainer')[kind]
    assert 2 ** (len(cfg.model.ddconfig.ch_mult) - 1) == stride
    assert cfg.model.n_embed == codes
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    iters = thousands * 1000
    assert cfg.train_cfg.max_iters == cfg.model.total_iters == iters
    assert all(schedule.end == iters for schedule in cfg.param_scheduler)
    assert cfg.model.warmup_iters < iters and iters % cfg.train_cfg.val_interval == 0
    crop = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'RandomResizedCrop')
    shown = {s.type: s for s in cfg.val_dataloader.dataset.pipeline}
    assert crop.scale == cfg.model.ddconfig.resolution == pixels
    assert shown['ResizeEdge'].scale == shown['CenterCrop'].crop_size == pixels
    assert {cfg.train_dataloader.dataset.split, cfg.val_dataloader.dataset.split} == {
        'train',
        'val',
    }
    if codes < 8192:  # the arguments are the trainer's
        MODELS.build(dict(cfg.model, data_preprocessor=None))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_logs_average_training_values_only(path):
    """The mean over the window would mix the accuracies of the last ten evaluations."""
    pattern = load(path).log_processor.mean_pattern
    metrics = ('accuracy/top1', 'mIoU', 'aAcc', 'mAcc', 'coco/bbox_mAP', 'knn_top1', 'lr')
    metrics += ('val/psnr', 'val/ssim', 'val/codebook_usage', 'val/perplexity')
    assert not [name for name in metrics if re.match(pattern, name)]
    trained = ['loss', 'loss_rpn_cls', 'decode.loss_ce', 'time', 'grad_norm', 'images_per_s']
    if path.parent.name in ('classification', 'segmentation', 'detection'):
        trained += ['acc', 'decode.acc_seg']
    assert all(re.match(pattern, name) for name in trained)
