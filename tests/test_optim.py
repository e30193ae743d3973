"""Parameter groups and schedules against the authors' optimizers."""

import pytest
import torch
from conftest import backbone_from
from mmengine.optim import build_optim_wrapper
from torch import nn

from mcbeit_mm.backbone import RelativePositionTable
from mcbeit_mm.head import MCBEiTHead
from mcbeit_mm.optim import Bf16OptimWrapper, WarmupCosineLR, layer_id


class Model(nn.Module):
    """A backbone with some heads, as mmpretrain, mmseg and mmdet models are."""

    def __init__(self, backbone, **heads):
        super().__init__()
        self.backbone = backbone
        for name, head in heads.items():
            setattr(self, name, head)


def groups_by_name(model, paramwise, lr=1.5e-3, weight_decay=0.05):
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay),
            constructor='ViTLayerDecayConstructor',
            paramwise_cfg=paramwise,
        ),
    )
    names = {param: name for name, param in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    return {names[p]: group for group in groups for p in group['params']}, groups


def compare(model, golden_entry, paramwise, rename, lr=1.5e-3, skip=()):
    got, groups = groups_by_name(model, paramwise, lr)
    expected = {rename(k): v for k, v in golden_entry['params'].items()}
    assert set(got) == set(expected)
    for name, values in expected.items():
        if name not in skip:
            assert got[name]['weight_decay'] == pytest.approx(values['weight_decay']), name
        assert got[name]['lr'] == pytest.approx(lr * values['lr_scale']), name
    assert len(groups) == golden_entry['number_of_groups']


@pytest.mark.parametrize('case, abs_pos', [('pretrain', False), ('pretrain_abs_pos_emb', True)])
def test_pretraining_groups(golden, golden_json, case, abs_pos):
    sizes = golden('pretrain').sizes
    model = Model(
        backbone_from(sizes, abs_pos=abs_pos),
        head=MCBEiTHead(sizes['embed_dim'], sizes['vocab_size']),
    )

    def rename(name):
        return f'head.{name}' if name.startswith('lm_head') else f'backbone.{name}'

    compare(model, golden_json('optim')[case], dict(layer_decay_rate=1.0), rename)


@pytest.mark.parametrize(
    'case, paramwise',
    [
        ('finetune', dict(layer_decay_rate=0.65)),
        ('finetune_abs_pos_emb', dict(layer_decay_rate=0.65)),
        ('finetune_layer_decay_1', dict(layer_decay_rate=1.0)),
        (
            'finetune_no_decay_on_rel_pos_bias',
            dict(
                layer_decay_rate=0.65,
                no_decay=('cls_token', 'pos_embed', 'relative_position_bias_table'),
            ),
        ),
    ],
)
def test_fine_tuning_groups(golden_json, case, paramwise):
    entry = golden_json('optim')[case]
    sizes = golden_json('config')['files']['finetune.npz']
    settings = dict(
        rel_pos='per_block', out_type='avg_featmap', abs_pos=case.endswith('abs_pos_emb')
    )
    model = Model(backbone_from(sizes, **settings), head=nn.Linear(sizes['embed_dim'], 5))

    def rename(name):
        return name if name.startswith('head.') else f'backbone.{name}'

    compare(model, entry, paramwise, rename)


def segmentor(sizes, **kwargs):
    """A segmentor with the golden model's parameters: mmseg's neck, two small heads."""
    from mmseg.models.necks import Feature2Pyramid

    dims = sizes['embed_dim']
    head = nn.Module()
    head.conv_seg = nn.Conv2d(dims, 2, 1)
    auxiliary = nn.Module()
    auxiliary.conv_seg = nn.Conv2d(dims, 2, 1)
    head.convs = nn.ModuleList([nn.Sequential(nn.Conv2d(dims, dims, 3, bias=False))])
    head.convs[0].append(nn.BatchNorm2d(dims))
    backbone = backbone_from(
        sizes,
        rel_pos='per_block',
        out_type='featmap',
        final_norm=False,
        out_indices=sizes['out_indices'],
        **kwargs,
    )
    neck = Feature2Pyramid(dims, norm_cfg=dict(type='BN'))
    return Model(backbone, neck=neck, decode_head=head, auxiliary_head=auxiliary)


@pytest.mark.parametrize('case', ['seg', 'seg_abs_and_shared_bias'])
def test_segmentation_groups(golden, golden_json, case):
    """Differs from the authors in cls_token and pos_embed: their name check misses the prefix."""
    entry, sizes = golden_json('optim')[case], golden('seg').sizes
    model = segmentor(sizes, abs_pos='abs' in case)
    undecayed = {'backbone.cls_token', 'backbone.pos_embed'} & set(entry['params'])
    if 'shared' in case:
        model.backbone.rel_pos_bias = RelativePositionTable((4, 4), sizes['num_heads'])

    def rename(name):
        name = name.replace('backbone.fpn1.', 'neck.upsample_4x.')
        return name.replace('backbone.fpn2.', 'neck.upsample_2x.')

    rate = entry['layer_decay_rate']
    assert all(entry['params'][name]['weight_decay'] == 0.05 for name in undecayed)
    compare(
        model,
        entry,
        dict(layer_decay_rate=rate),
        rename,
        lr=entry['base_lr'],
        skip=undecayed,
    )
    got, _ = groups_by_name(model, dict(layer_decay_rate=rate))
    assert all(got[name]['weight_decay'] == 0 for name in undecayed)


def test_frozen_parameters_are_left_out():
    model = Model(nn.Linear(2, 2), head=nn.Linear(2, 2))
    model.backbone.num_layers = 1
    model.head.requires_grad_(False)
    names, _ = groups_by_name(model, dict(layer_decay_rate=0.5))
    assert set(names) == {'backbone.weight', 'backbone.bias'}


def test_unknown_option_is_refused():
    model = Model(nn.Linear(2, 2))
    model.backbone.num_layers = 1
    with pytest.raises(ValueError, match="unknown keys \\['layer_decay'\\]"):
        groups_by_name(model, dict(layer_decay=0.5))


def test_layer_ids():
    names = ['backbone.cls_token', 'backbone.patch_embed.proj.weight', 'backbone.blocks.0.gamma_1']
    names += [
        'backbone.blocks.11.mlp.fc1.bias',
        'backbone.rel_pos_bias.x',
        'decode_head.blocks.0.w',
    ]
    assert [layer_id(name, 12) for name in names] == [0, 0, 1, 12, 13, 13]


def scheduled(base, eta_min, steps, warmup, **kwargs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = WarmupCosineLR.build_iter_from_epoch(
        optimizer, warmup=warmup, eta_min_ratio=eta_min / base, **kwargs
    )
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return values


def test_schedule_equals_golden_main(golden_json):
    g = golden_json('optim')['pretrain_main']
    args = g['args']
    values = scheduled(
        args['lr'], args['min_lr'], len(g['lr_values']), args['warmup_epochs'],
        end=args['epochs'], epoch_length=args['steps_per_epoch'],
    )  # fmt: skip
    assert values == pytest.approx(g['lr_values'], rel=1e-9, abs=1e-15)


def test_schedule_equals_golden_table(golden_json):
    compared = 0
    for case in golden_json('optim')['cosine_scheduler']:
        args = case['args']
        if case['values'] is None or args.get('warmup_steps') or args.get('start_warmup_value'):
            continue  # options that the authors' recipes never set
        values = scheduled(
            args['base_value'], args['final_value'], len(case['values']),
            args.get('warmup_epochs', 0), end=args['epochs'], epoch_length=args['niter_per_ep'],
        )  # fmt: skip
        assert values == pytest.approx(case['values'], rel=1e-9, abs=1e-15)
        compared += 1
    assert compared >= 3


def test_schedule_scales_with_each_group_and_resumes():
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([dict(params=params[0]), dict(params=params[1], lr=0.1)], lr=1.0)
    settings = dict(warmup=3, eta_min_ratio=0.01, end=10, by_epoch=False)
    scheduler = WarmupCosineLR(optimizer, **settings)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    first, second = (group['lr'] for group in optimizer.param_groups)
    assert second == pytest.approx(first * 0.1)
    state = scheduler.state_dict()
    optimizer.step()
    scheduler.step()
    expected = optimizer.param_groups[0]['lr']
    scheduler.load_state_dict(state)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]['lr'] == expected


@pytest.mark.parametrize('kwargs', [dict(warmup=20, end=10), dict(warmup=1)])
def test_schedule_refuses_impossible_lengths(kwargs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match='warmup must be in'):
        WarmupCosineLR(optimizer, **kwargs)


def test_bf16_wrapper_computes_in_bf16_on_cpu():
    model = nn.Linear(4, 4)
    wrapper = Bf16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 4)).dtype == torch.bfloat16
    assert model(torch.ones(1, 4)).dtype == torch.float32
