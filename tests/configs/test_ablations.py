"""Each ablation changes what its name says, on both bases, and nothing else."""

import re

import pytest
from config_files import load
from conftest import ROOT

from mcbeit_mm.config.diff import ABSENT, differences, settings

FOLDER = ROOT / 'configs/ablations'
PATHS = sorted(FOLDER.glob('*.py'))
PIPELINE = 'train_dataloader.dataset.pipeline'
TOKENIZERS = {
    'ema-vqgan': 'EMAVQGANTokenizer',
    'dalle': 'DALLETokenizer',
    'dvae': 'DiscreteVAETokenizer',
    'vqkd': 'VQKDTokenizer',
}
VOCABULARY = {'model.head.vocab_size': None}  # the tokenizer's


def value_of(cfg, name):
    """Value under a dotted key, with steps of a list named by their type; ABSENT if none."""
    for part in name.split('.'):
        if isinstance(cfg, list):
            cfg = {step['type']: step for step in cfg}
        if part not in cfg:
            return ABSENT
        cfg = cfg[part]
    return cfg


def expected(name, baseline):
    """Dotted key -> value in the ablation of that name; an omitted key keeps its value."""
    family, number = re.fullmatch(r'(.*?)(?:-x?([\d.]+))?', name).groups()
    value = float(number) if number else None
    backbone = baseline['model']['backbone']
    grid = backbone['img_size'] // backbone['patch_size']
    epochs = baseline['train_cfg']['max_epochs']
    match family:
        case 'baseline':
            return {}
        case 'omega' | 'tau':
            return {f'model.head.{family}': value}
        case 'hard':
            return {'model.head.tau': 0.0, 'model.head.omega': 0.0}
        case 'affinity-detached':
            return {'model.head.detach_affinity': True}
        case 'affinity-tau':
            return {'model.head.tau_affinity': value}
        case 'mask-random':
            return {f'{PIPELINE}.RandomPatchMask.mask_ratio': value / 100}
        case 'mask-block':  # BEiT: 75 of 196 patches, called 40 %, blocks of 16 or more
            assert value == 40
            sizes = dict(num_masked=round(75 / 196 * grid**2), min_block=round(16 / 196 * grid**2))
            step = dict(type='BlockMask', grid_size=grid, **sizes)
            return {f'{PIPELINE}.RandomPatchMask': ABSENT, f'{PIPELINE}.BlockMask': step}
        case 'rel-pos-none':
            return {'model.backbone.rel_pos': 'none', 'model.backbone.abs_pos': True}
        case 'epochs':
            return dict.fromkeys(
                ('train_cfg.max_epochs', 'param_scheduler.WarmupCosineLR.end'), value * epochs
            )
    kind = {'model.target_generator.type': TOKENIZERS[family.removeprefix('tokenizer-')]}
    if name == 'tokenizer-vqkd':  # stride 16: one code a patch needs the size of the input
        view = {f'{PIPELINE}.TwoViewRandomResizedCrop.second_size': 16 * grid}
        kind |= view | {
            'model.head.tau': 0.07,
            'model.target_generator.checkpoint': 'weights/vqkd_encoder.pth',
        }
    return kind | VOCABULARY


@pytest.mark.parametrize('where', ['in1k', 'photos'])
@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_resolves_to_its_name(path, where):
    baseline = settings(load('ablations/baseline.py', MCBEIT_ABLATION=where))
    cfg = settings(load(path, MCBEIT_ABLATION=where))
    wanted = expected(path.stem, baseline)
    changes = {change.name: change.new for change in differences(baseline, cfg)}
    assert changes == {k: v for k, v in wanted.items() if value_of(baseline, k) != v}
    for key, value in wanted.items():
        found = value_of(cfg, key)
        assert found is ABSENT if value is ABSENT else found == value


def test_the_bases_are_those_of_their_names():
    sizes = {}
    for where in ('in1k', 'photos'):
        cfg = load('ablations/baseline.py', MCBEIT_ABLATION=where)
        assert (cfg.model.head.tau, cfg.model.head.omega) == (4.0, 0.2)
        mask = cfg.train_dataloader.dataset.pipeline[3]
        assert (mask.type, mask.mask_ratio) == ('RandomPatchMask', 0.75)
        sizes[where] = (cfg.model.backbone.img_size, cfg.train_cfg.max_epochs)
    assert sizes['in1k'] == (224, 300) and sizes['photos'] < sizes['in1k']


def test_every_question_has_its_file():
    wanted = 'baseline hard affinity-detached mask-random-60 mask-block-40 rel-pos-none epochs-x2'
    wanted += ' omega-0 omega-0.5 omega-0.8 omega-1 tau-1 tau-2 tau-8 affinity-tau-0.1'
    wanted += ' affinity-tau-0.5 tokenizer-ema-vqgan tokenizer-dalle tokenizer-dvae tokenizer-vqkd'
    assert {path.stem for path in PATHS} == set(wanted.split())
