"""Fine-tuning configs: what they build, the authors' numbers, and real steps on a few photos."""

import math
import re

import numpy as np
import pytest
import torch
from config_files import load as load_file
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets.transforms.auto_augment import RANDAUG_POLICIES
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, LEVEL_TO_ARG
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from mcbeit_mm.evaluation.linear_probe import LinearProbe

CONFIGS = {path.stem: path for path in sorted((ROOT / 'configs/classification').glob('*.py'))}
BASE = 'mcbeit_vit-base-p16_8xb128-amp-coslr-100e_in1k'
LARGE = 'mcbeit_vit-large-p16_8xb64-accum2-amp-coslr-50e_in1k'
LINEAR = 'mcbeit_vit-base-p16_8xb128-linear-amp-coslr-100e_in1k'
HIGHER = 'mcbeit_vit-base-p16_8xb64-amp-coslr-30e_in1k-384px'
TINY = 'mcbeit_vit-tiny-p16_1xb64-bf16-coslr-20e_imagefolder-128px'
NAME = re.compile(
    r'mcbeit_vit-(?P<arch>[a-z]+)-p16_(?P<gpus>\d+)xb(?P<batch>\d+)(-accum(?P<accum>\d+))?'
    r'(?P<linear>-linear)?-(?P<precision>amp|bf16)-coslr-(?P<epochs>\d+)e'
    r'_(?P<data>in1k|imagefolder)(-(?P<pixels>\d+)px)?'
)
CLASSES = ('ash', 'birch', 'cedar', 'dogwood')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Four classes of four JPEGs each, 40 x 56 pixels, which differ in color; train and val."""
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    colors = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))
    for part in ('train', 'val'):
        for name, color in zip(CLASSES, colors, strict=True):
            (folder / part / name).mkdir(parents=True)
            for i in range(4):
                noise = rng.integers(0, 50, (40, 56, 3))
                image = Image.fromarray((np.array(color) + noise).astype(np.uint8))
                image.save(folder / part / name / f'{i}.jpg')
    return folder


def load(name: str, **variables: str) -> Config:
    """A config without pretrained weights."""
    cfg = load_file(CONFIGS[name], **variables)
    cfg.model.backbone.init_cfg = cfg.load_from = None
    return cfg


def shrink(cfg: Config, num_layers: int = 2, dims: int = 32) -> Config:
    """Keep everything but the width, and the depth unless given."""
    cfg.model.backbone.arch = dict(
        embed_dims=dims, num_layers=num_layers, num_heads=2, feedforward_channels=2 * dims
    )
    cfg.model.head.in_channels = dims
    return cfg


def runnable(name: str, photos, work_dir, batch_size: int = 8) -> Config:
    """A config for 32-pixel crops of the photos, one epoch on the CPU in this process."""
    cfg = shrink(load(name, MCBEIT_CLASSES='4'))
    cfg.work_dir, cfg.default_hooks.checkpoint.interval = str(work_dir), 100
    cfg.model.backbone.img_size = 32
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.train_cfg.max_epochs = 1
    cfg.env_cfg.mp_cfg = {}  # else processes started by later tests are forks
    for part in ('train', 'val'):
        loader = cfg[f'{part}_dataloader']
        loader.batch_size, loader.num_workers, loader.pin_memory = batch_size, 0, False
        loader.dataset.data_root = str(photos)
        for step in loader.dataset.pipeline:
            step.update({key: 32 for key in ('scale', 'crop_size') if key in step})
    cfg.test_dataloader = cfg.val_dataloader
    return cfg


class Losses(Hook):
    """Remembers the loss and the mode of the backbone at each step."""

    def __init__(self):
        self.losses, self.training = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())
        self.training.append(runner.model.backbone.training)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_name_agrees_with_content(name):
    match = NAME.fullmatch(name)
    assert match, 'name does not follow the scheme'
    said, cfg = match.groupdict(), load(name)
    backbone, wrapper = cfg.model.backbone, cfg.optim_wrapper
    if said['arch'] == 'tiny':
        assert (backbone.arch.embed_dims, backbone.arch.num_layers) == (192, 12)
    else:
        assert backbone.arch == said['arch']
    assert (backbone.patch_size, backbone.img_size) == (16, int(said['pixels'] or 224))
    dims = dict(tiny=192, small=384, base=768, large=1024)[said['arch']]
    assert cfg.model.head.in_channels == dims
    assert (cfg.model.type == 'LinearProbe') == bool(said['linear'])
    accum = int(said['accum'] or 1)
    assert wrapper.get('accumulative_counts', 1) == accum
    assert wrapper.type == dict(amp='AmpOptimWrapper', bf16='Bf16OptimWrapper')[said['precision']]
    assert cfg.train_dataloader.batch_size == int(said['batch'])
    total = int(said['gpus']) * int(said['batch']) * accum
    assert cfg.auto_scale_lr.base_batch_size == total
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[0].end == int(said['epochs'])
    assert (cfg.model.head.num_classes == 1000) == (said['data'] == 'in1k')
    assert cfg.val_dataloader.dataset.data_prefix == 'val'
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator


def test_data_weights_and_classes_come_from_variables():
    variables = dict(MCBEIT_DATA='/somewhere/photos', MCBEIT_WEIGHTS='/somewhere/weights.pth')
    for name, path in CONFIGS.items():
        cfg = load_file(path, MCBEIT_CLASSES='37', **variables)
        for part in ('train', 'val', 'test'):
            assert cfg[f'{part}_dataloader'].dataset.data_root == '/somewhere/photos'
        init = cfg.model.backbone.init_cfg
        assert (cfg.load_from if name == HIGHER else init.checkpoint) == '/somewhere/weights.pth'
        if 'imagefolder' in name:
            assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 37


@pytest.mark.parametrize('name', CONFIGS)
def test_steps_change_the_weights_from_the_loss_of_a_uniform_guess(name, photos, tmp_path):
    cfg = runnable(name, photos, tmp_path)
    runner, steps = Runner.from_cfg(cfg), Losses()
    runner.register_hook(steps)
    before = {}
    steps.before_train_epoch = lambda runner: before.update(state(runner.model))
    runner.train()
    assert len(steps.losses) == 16 // 8 and np.isfinite(steps.losses).all()
    assert (tmp_path / 'best_accuracy_top1_epoch_1.pth').is_file()  # it was validated
    # The probe's head starts at std 0.01; on the CPU, autocast computes the loss in bf16.
    tolerance = 0.1 if name == LINEAR else 1e-4 if 'amp' in name else 4e-3
    assert steps.losses[0] == pytest.approx(math.log(cfg.model.head.num_classes), rel=tolerance)
    after = runner.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {'head.fc.weight', 'head.fc.bias'} <= changed
    if name == LINEAR:
        assert changed == {'head.fc.weight', 'head.fc.bias'}
        assert isinstance(runner.model, LinearProbe) and not any(steps.training)
        groups = runner.optim_wrapper.optimizer.param_groups
        trained = {id(param) for group in groups for param in group['params']}
        assert trained == {id(param) for param in runner.model.head.parameters()}
    else:
        assert {'backbone.patch_embed.proj.weight', 'backbone.fc_norm.bias'} <= changed
        assert all(steps.training)


@pytest.mark.parametrize(
    'name, expected',
    [
        (BASE, 86_530_984),
        ('mcbeit_vit-small-p16_8xb128-amp-coslr-100e_in1k', 22_032_328),
        (LARGE, 304_430_568),
    ],
)
def test_parameter_counts_are_the_authors(name, expected):
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        model = MODELS.build(load(name).model)
    assert sum(param.numel() for param in model.parameters()) == expected


def test_head_starts_a_thousand_times_smaller(photos):
    """trunc_normal_(std=0.02) x 0.001, bias 0: a normal distribution, cut at 100 sigma."""
    cfg = shrink(load(BASE), dims=256)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    weight = model.head.fc.weight.detach()
    assert float(weight.std()) == pytest.approx(2e-5, rel=0.01)
    assert abs(float(weight.mean())) < 2e-7 and float(weight.abs().max()) < 2e-4
    assert not model.head.fc.bias.any()


@pytest.mark.parametrize(
    'name, depth, embed, block0', [(BASE, 12, 0.003697, 0.005688), (LARGE, 24, 7.525e-4, 1.0034e-3)]
)
def test_learning_rates_by_depth(name, depth, embed, block0):
    cfg = shrink(load(name), num_layers=depth, dims=16)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    cfg.optim_wrapper.type = 'OptimWrapper'
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    group_of = {id(p): group for group in wrapper.param_groups for p in group['params']}
    group = {key: group_of[id(param)] for key, param in model.named_parameters()}
    decay, lr = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate, cfg.optim_wrapper.optimizer.lr
    scales = {
        'backbone.patch_embed.proj.weight': embed,
        'backbone.cls_token': embed,
        'backbone.blocks.0.attn.qkv.weight': block0,
        f'backbone.blocks.{depth - 1}.mlp.fc2.weight': decay,
        'backbone.fc_norm.weight': 1.0,
        'head.fc.weight': 1.0,
    }
    for key, scale in scales.items():
        assert group[key]['lr_scale'] == pytest.approx(scale, rel=2e-4), key
        assert group[key]['lr'] == pytest.approx(lr * scale, rel=2e-4), key
    decayed = {key for key in group if group[key]['weight_decay'] == 0.05}
    assert {'head.fc.weight', 'backbone.blocks.0.attn.relative_position_bias_table'} <= decayed
    assert {'backbone.cls_token', 'head.fc.bias', 'backbone.blocks.0.gamma_1'}.isdisjoint(decayed)
    assert cfg.optim_wrapper.get('clip_grad') is None


@pytest.mark.parametrize(
    'name, warmup, total', [(BASE, 25_020, 125_100), (LARGE, 2 * 6_255, 2 * 62_550)]
)
def test_learning_rates_over_time(name, warmup, total):
    """ImageNet has 1,251 batches of 1,024; L's loader has two of 512 for each."""
    cfg = load(name)
    epoch_length = 1_251 * cfg.optim_wrapper.get('accumulative_counts', 1)
    lr = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = PARAM_SCHEDULERS.build(
        dict(cfg.param_scheduler[0], optimizer=optimizer, epoch_length=epoch_length)
    )
    assert optimizer.param_groups[0]['lr'] == 0
    rates = [lr * scheduler.factor(step) for step in (0, warmup - 1, warmup, total - 1)]
    assert rates[:3] == pytest.approx([0, lr, lr], rel=1e-12)
    assert rates[3] == pytest.approx(1e-6, rel=1e-3)


def test_mixed_targets_are_timms_smoothed_ones():
    """With two images, the random partner is either the image itself or timm's."""
    cfg = shrink(load(BASE))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    labels, num_classes, seen = torch.tensor([3, 7]), 1000, set()
    for seed in range(40):
        np.random.seed(seed)
        torch.manual_seed(1000 + seed)  # equal seeds would give equal draws
        inputs = torch.stack([torch.full((3, 32, 32), value) for value in (0, 200)])
        samples = [DataSample().set_gt_label(label) for label in labels]
        data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
        scores = torch.stack([sample.gt_score for sample in data['data_samples']])
        lam = float(scores[0, 3])
        logits = torch.randn(2, num_classes)
        loss = model.head.loss_module(logits, scores)
        targets = model.head.loss_module.smooth_label(scores)
        torch.testing.assert_close(targets.sum(1), torch.ones(2), atol=1e-5, rtol=0)
        if lam == 1:  # each image with itself
            continue
        expected = mixup_target(labels, num_classes, lam, smoothing=0.1)
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, expected))
        pixels = data['inputs'][0] * model.data_preprocessor.std + model.data_preprocessor.mean
        assert float(pixels.mean()) == pytest.approx(200 * (1 - lam), abs=1e-2)
        seen.add('mixup' if float(pixels.max() - pixels.min()) < 1 else 'cutmix')
    assert seen == {'cutmix', 'mixup'}


@pytest.mark.parametrize('name', CONFIGS)
def test_evaluation_uses_the_authors_pixels(name, tmp_path):
    """Short side to size / 0.875 below 384 px, bicubic, center crop: the pixels of torchvision."""
    side = load(name).model.backbone.img_size
    resized = {224: 256, 384: 384, 128: 128}[side]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 417, 3), np.uint8))
    image.save(tmp_path / 'image.png')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [TRANSFORMS.build(step) for step in load(name).val_dataloader.dataset.pipeline]
    results = dict(img_path=str(tmp_path / 'image.png'), gt_label=0)
    for step in steps:
        results = step(results)
    reference = Compose([Resize(resized, InterpolationMode.BICUBIC), CenterCrop(side)])(image)
    assert np.array_equal(results['inputs'].numpy()[::-1].transpose(1, 2, 0), np.array(reference))


def test_randaugment_has_timms_magnitudes():
    """Both lists in timm's order; timm rounds the last two kinds to whole numbers."""
    (step,) = [s for s in load(BASE).train_pipeline if s.type == 'RandAugment']
    policies = RANDAUG_POLICIES[step.policies]
    assert len(policies) == len(_RAND_INCREASING_TRANSFORMS)
    for policy, name in zip(policies, _RAND_INCREASING_TRANSFORMS, strict=True):
        if 'magnitude_range' not in policy:
            assert LEVEL_TO_ARG[name] is None and policy['type'] == name
            continue
        low, high = policy['magnitude_range']
        magnitude = step.magnitude_level / 10 * (high - low) + low
        argument = LEVEL_TO_ARG[name](step.magnitude_level, dict(translate_const=100))[0]
        if name.startswith(('Color', 'Contrast', 'Brightness', 'Sharpness')):
            argument -= 1  # timm's factor, mmpretrain's distance from 1
        rounded = name.startswith(('Solarize', 'Posterize'))
        assert abs(argument) == pytest.approx(magnitude, abs=1.0 if rounded else 1e-6), name


def test_erased_pixels_are_normal_after_normalization():
    (step,) = [dict(s) for s in load(BASE).train_pipeline if s.type == 'RandomErasing']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        erase = TRANSFORMS.build(step | dict(erase_prob=1.0))
    mean, std = np.array(step['fill_color']), np.array(step['fill_std'])
    values, shares = [], []
    for _ in range(60):
        image = np.full((224, 224, 3), 1, np.uint8)
        erased = erase(dict(img=image))['img']
        hit = (erased != 1).any(-1)
        shares.append(hit.mean())
        values.append((erased[hit] - mean) / std)
    values = np.concatenate(values)
    assert 0.015 < min(shares) and max(shares) < 0.34
    assert abs(values.mean()) < 0.03
    assert 0.93 < values.std() < 1.0  # clipped to 0..255: a little below 1


def test_resuming_continues_as_if_never_stopped(photos, tmp_path):
    """Crops, RandAugment, mixing and drop path of the second epoch are those of one long run."""

    def trained(work_dir, epochs: int, resume: bool = False) -> dict[str, torch.Tensor]:
        cfg = runnable(BASE, photos, work_dir)
        cfg.train_cfg.max_epochs, cfg.resume = epochs, resume
        runner = Runner.from_cfg(cfg)
        runner.train()
        return state(runner.model)

    straight = trained(tmp_path / 'straight', 2)
    first = trained(tmp_path / 'stopped', 1)
    resumed = trained(tmp_path / 'stopped', 2, resume=True)
    assert not torch.equal(first['head.fc.weight'], resumed['head.fc.weight'])
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_higher_resolution_continues_with_the_same_classifier(photos, tmp_path):
    low = Runner.from_cfg(runnable(BASE, photos, tmp_path / 'low'))
    low.train()
    before = state(low.model)
    cfg = runnable(HIGHER, photos, tmp_path / 'higher')
    cfg.model.backbone.img_size = 48
    cfg.load_from = str(tmp_path / 'low/epoch_1.pth')
    runner = Runner.from_cfg(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    higher = state(runner.model)
    resized = {key for key in before if before[key].shape != higher[key].shape}
    table = 'attn.relative_position_bias_table'
    assert resized == {f'backbone.blocks.{i}.{table}' for i in range(2)}
    assert all(torch.equal(before[key], higher[key]) for key in before if key not in resized)


@pytest.mark.slow
def test_a_tiny_vit_memorizes_sixteen_photos(photos, tmp_path):
    cfg = runnable(TINY, photos, tmp_path, batch_size=16)
    cfg.optim_wrapper.optimizer.lr = 2e-3
    cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = 40
    cfg.param_scheduler[0].end = 40
    cfg.val_dataloader.dataset.data_prefix = 'train'
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() >= 95
