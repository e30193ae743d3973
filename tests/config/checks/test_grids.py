"""Mismatched sizes are refused, and the message names those that fit."""

import math

import config_files
import pytest
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from tiny_cache import write_header

import mcbeit_mm  # noqa: F401  registers what the configs name
from mcbeit_mm.cached_targets.cache import HEADER
from mcbeit_mm.config.checks.grids import check_grids
from mcbeit_mm.tokenizers.vqgan import VQGANTokenizer

CACHED = 'mcbeit_vit-base-p16_8xb256-cached-amp-coslr-800e_in1k'
CONFIGS = [
    (scale, path)
    for scale, pattern in [
        ('in1k', 'pretrain/*.py'),
        ('in1k', 'demo/*p16_demo.py'),
        ('in1k', 'ablations/*.py'),
        ('photos', 'ablations/*.py'),
    ]
    for path in config_files.CONFIGS
    if path.match(pattern) and path.stem != CACHED  # its sizes are those of the cache
]
SIZES = dict(ddconfig=dict(ch_mult=[1, 1, 2, 2]), n_embed=24, embed_dim=8)  # stride 8


def config(**changes) -> Config:
    """A config that fits: 4 x 6 patches, tokens of 8 pixels."""
    settings = dict(
        size=(64, 96), second_size=(32, 48), grid_size=(4, 6), img_size=(64, 96), vocab_size=24
    ) | changes  # fmt: skip
    views = dict(
        type='TwoViewRandomResizedCrop',
        size=settings['size'],
        second_size=settings['second_size'],
    )
    mask = dict(type='RandomPatchMask', grid_size=settings['grid_size'])
    pipeline = [dict(type='LoadImageFromFile'), views, mask, dict(type='PackInputs')]
    return Config(
        dict(
            model=dict(
                type='MCBEiT',
                backbone=dict(type='MCBEiTViT', img_size=settings['img_size']),
                head=dict(type='MCBEiTHead', vocab_size=settings['vocab_size']),
                target_generator=dict(type='GumbelVQGANTokenizer', **SIZES),
            ),
            train_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=pipeline)),
        )
    )


def nested(cfg: Config) -> Config:
    """The same pipeline, its views within RandomApply, behind two data set wrappers."""
    data = cfg.train_dataloader.dataset
    data.pipeline[1] = dict(type='RandomApply', transforms=[data.pipeline[1]], prob=1.0)
    inner = dict(type='RepeatDataset', times=2, dataset=data)
    cfg.train_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=[inner])
    return cfg


MISMATCHES = [
    (dict(second_size=(64, 96)), r'view of 64x96 pixels gives 8x12 tokens \(stride 8\) for 4x6 '
     r'patches: set second_size=\(32, 48\) in TwoViewRandomResizedCrop'),
    (dict(second_size=(48, 32)), r'gives 6x4 tokens .* set second_size=\(32, 48\)'),
    (dict(second_size=(33, 48)), r'gives 4.125x6 tokens .* set second_size=\(32, 48\)'),
    (dict(grid_size=6), r'mask has 6x6 patches, the student view 4x6.*grid_size=\(4, 6\) in Rand'),
    (dict(size=100), r'student view has 100x100.*patch size 16x16: set size=96 in TwoView'),
    (dict(size=96), r'gives 4x6 tokens .* for 6x6 patches: set second_size=48 in TwoView'),
    (dict(vocab_size=8192), 'tokenizer has 24 codes.*model.head.vocab_size=24'),
]  # fmt: skip


@pytest.mark.parametrize('wrap', [lambda cfg: cfg, nested])
@pytest.mark.parametrize('changes, message', MISMATCHES)
def test_mismatch_is_refused_with_what_fits(changes, message, wrap):
    check_grids(wrap(config()))
    with pytest.raises(ValueError, match=message):
        check_grids(wrap(config(**changes)))


@pytest.mark.parametrize('wrap', [lambda cfg: cfg, nested])
@pytest.mark.parametrize(
    'changes, needed',
    [
        ({}, 96**2 / (0.08 * 0.75)),
        (dict(scale=(0.5, 1.0)), 96**2 / (0.5 * 0.75)),
        (dict(ratio=(0.9, 2.0)), 96**2 / (0.08 * 0.5)),
    ],
)
def test_images_decoded_to_fewer_pixels_than_crops_need(changes, needed, wrap):
    cfg = config()
    load, views = cfg.train_dataloader.dataset.pipeline[:2]
    load.update(type='LoadCheckedImage', enough_pixels=math.ceil(needed))
    views.update(changes)
    cfg = wrap(cfg)
    check_grids(cfg)
    load.enough_pixels -= 1
    message = f'smaller than the 96 pixels of a view.*set enough_pixels={math.ceil(needed)} or more'
    with pytest.raises(ValueError, match=message):
        check_grids(cfg)
    load.enough_pixels = None
    check_grids(cfg)


def test_other_sizes_than_the_backbones_own():
    check_grids(config(size=160, second_size=80, grid_size=10))


def test_the_vocabulary_may_be_the_tokenizers():
    check_grids(config(vocab_size=None))


def test_defaults_count_too():
    cfg = config(vocab_size=None)
    for part in (cfg.model.backbone, *cfg.train_dataloader.dataset.pipeline):
        for key in [key for key in part if key != 'type']:
            part.pop(key)
    check_grids(cfg)  # 224 / 16 = 112 / 8 = 14
    cfg.model.backbone.patch_size = 32
    with pytest.raises(ValueError, match='gives 14x14 tokens .* 7x7 patches: set second_size=56'):
        check_grids(cfg)
    cfg.model.head.pop('vocab_size')
    with pytest.raises(ValueError, match='predicts 8192'):
        check_grids(cfg)


def test_what_is_not_known_passes(monkeypatch):
    monkeypatch.delattr(VQGANTokenizer, 'geometry')  # as for a tokenizer of someone else
    check_grids(config(second_size=64, vocab_size=7))
    with pytest.raises(ValueError, match='grid_size'):
        check_grids(config(grid_size=5))
    cfg = config(grid_size=5, second_size=64)
    cfg.model.type = 'ImageClassifier'
    check_grids(cfg)


def test_missing_tokenizer(tmp_path):
    cfg = config()
    cfg.model.target_generator.checkpoint = str(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='No tokenizer at .*nowhere'):
        check_grids(cfg)


def test_cached_sizes_are_compared(tmp_path):
    cfg = config_files.load(f'pretrain/{CACHED}.py', MCBEIT_CACHE=str(tmp_path))

    write_header(tmp_path, vocab_size=8192, grid=(14, 14), crop=dict(size=224, second_size=112))
    check_grids(cfg)
    write_header(tmp_path, vocab_size=8192, crop=dict(size=224, second_size=96))
    with pytest.raises(ValueError, match='gives 12x12 tokens'):
        check_grids(cfg)
    (tmp_path / HEADER).unlink()
    with pytest.raises(FileNotFoundError, match='no cached targets'):
        check_grids(cfg)


@pytest.mark.parametrize('scale, path', CONFIGS, ids=[f'{p.stem}-{s}' for s, p in CONFIGS])
def test_shipped_configs_fit(scale, path, tmp_path):
    cfg = config_files.load(path, MCBEIT_ABLATION=scale)
    assert cfg.model.type == 'MCBEiT'
    tokenizer = cfg.model.target_generator
    kind = MODELS.get(tokenizer.type)
    tokenizer.pop('checkpoint')
    if issubclass(kind, VQGANTokenizer):
        sizes = SIZES | dict(n_embed=cfg.model.head.vocab_size or 512)
        content = {'model': {'target': kind.target, 'params': sizes}}
        (tmp_path / 'model.yaml').write_text(yaml.safe_dump(content))
        (tmp_path / 'last.ckpt').touch()
        tokenizer.checkpoint = str(tmp_path)
    check_grids(cfg)
    cfg.train_dataloader.dataset.pipeline[-3].second_size = 8
    with pytest.raises(ValueError, match='gives 1x1 tokens|gives 0.5x0.5 tokens'):
        check_grids(cfg)
