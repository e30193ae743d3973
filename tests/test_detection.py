"""The detection backbone against the authors' arrays, slow references, and itself."""

import math

import pytest
import torch
from conftest import relative_error
from mmengine.registry import MODELS
from torch import nn

from mcbeit_mm.detection import MCBEiTDetViT, apply_in_windows
from mcbeit_mm.layers.offset_tables import OffsetTable, fit_offsets
from mcbeit_mm.layers.rel_pos import position_index

TABLE = 'relative_position_bias_table'
TINY = dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=64)


def tiny(**kwargs) -> MCBEiTDetViT:
    settings = dict(
        img_size=64,
        patch_size=8,
        window_size=4,
        global_blocks=(0, 2, 3, 5),
        layer_scale_init_value=0.5,
    )
    model = MCBEiTDetViT(TINY, **(settings | kwargs))
    for name, param in model.named_parameters():  # zeros would hide errors
        if name.endswith(TABLE) or name == 'pos_embed':
            nn.init.normal_(param)
    return model.eval()


def detector_of(sizes: dict, depth: int | None = None, **kwargs) -> MCBEiTDetViT:
    dims = sizes['embed_dim']
    arch = dict(
        embed_dims=dims,
        num_layers=depth or sizes['depth'],
        num_heads=sizes['num_heads'],
        feedforward_channels=4 * dims,
    )
    return MCBEiTDetViT(arch, patch_size=sizes['patch_size'], **kwargs).eval()


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize('name', ['det', 'det_depth4'])
def test_golden_maps(golden, name):
    g = golden(name)
    model = detector_of(
        g.sizes, img_size=tuple(g.sizes['img_size']), window_size=g.sizes['window_size']
    )
    model.load_state_dict(g.group('state'))  # with its index buffers
    maps = model(g['image'])
    assert len(maps) == 4
    for i, out in enumerate(maps):
        assert relative_error(out.detach(), g[f's{i}']) < 2e-6


@pytest.mark.parametrize('case', [0, 1])
def test_golden_shared_tables(golden, case):
    g = golden('det_convert')
    dst = g.sizes['dst'][case]
    model = detector_of(g.sizes, img_size=dst['img'], window_size=dst['window'])
    fitted = model.fit_state({f'rel_pos_bias.{TABLE}': g['shared/src_table']})
    assert set(fitted) == {f'windowed_rel_pos_bias.{TABLE}', f'global_rel_pos_bias.{TABLE}'}
    for kind in ('windowed', 'global'):
        got = fitted[f'{kind}_rel_pos_bias.{TABLE}']
        assert relative_error(got, g[f'shared/dst{case}_{kind}']) < 1e-6


def test_golden_pos_embed(golden):
    g = golden('det_convert')
    model = detector_of(g.sizes, img_size=g.sizes['dst'][1]['img'])
    fitted = model.fit_state({'pos_embed': g['abs/src_pos_embed']})
    assert relative_error(fitted['pos_embed'], g['abs/dst_pos_embed']) < 1e-6


@pytest.mark.parametrize(('group', 'depth', 'count'), [('per_block', 4, 4), ('per_block8', 8, 2)])
def test_golden_block_tables(golden, group, depth, count):
    g = golden('det_convert')
    model = detector_of(
        g.sizes,
        depth,
        img_size=g.sizes['block_img'],
        window_size=g.sizes['block_window'],
        rel_pos='per_block',
    )
    state = {f'blocks.{i}.attn.{TABLE}': g[f'{group}/src_table{i}'] for i in range(count)}
    fitted = model.fit_state(state)
    assert set(fitted) == {f'rel_pos_bias.{i}.{TABLE}' for i in range(count)}
    for i in range(count):
        # The authors' bisection stops at an interval of 1e-6.
        got = fitted[f'rel_pos_bias.{i}.{TABLE}']
        assert relative_error(got, g[f'{group}/dst_table{i}']) < 1e-5


def test_shared_table_goes_into_every_block(golden):
    g = golden('det_convert')
    model = detector_of(g.sizes, img_size=g.sizes['block_img'], window_size=3, rel_pos='per_block')
    fitted = model.fit_state({f'rel_pos_bias.{TABLE}': g['per_block/src_table0']})
    for i in range(g.sizes['depth']):
        got = fitted[f'rel_pos_bias.{i}.{TABLE}']
        assert relative_error(got, g['per_block/dst_table0']) < 1e-5


def slow_bias(table: torch.Tensor, table_grid: tuple, grid: tuple) -> torch.Tensor:
    """Bias of a grid not larger than the table's, from the index with class rows."""
    index = position_index(table_grid, table.device)[1:, 1:]
    rows = [y * table_grid[1] + x for y in range(grid[0]) for x in range(grid[1])]
    return table[index[rows][:, rows]].permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize('grid', [(5, 7), (5, 6), (2, 7), (1, 1)])
def test_bias_and_its_gradient(grid):
    module = OffsetTable((5, 7), num_heads=3).double()
    table = nn.init.normal_(module.relative_position_bias_table)
    expected = slow_bias(table, (5, 7), grid)
    got = module.bias(grid, torch.float64)
    assert torch.equal(got, expected)
    weights = torch.randn_like(expected)
    grads = [torch.autograd.grad((bias * weights).sum(), table)[0] for bias in (got, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('size', [(5, 7), (3, 9), (4, 8), (2, 2), (8, 3)])
def test_border_windows_equal_masked_padding(size):
    """The reference pads the map to full windows and keeps padded keys out of the softmax."""
    model, side = tiny(), 4
    block, table = model.blocks[1], model.windowed_rel_pos_bias
    x = torch.randn(2, *size, TINY['embed_dims'])
    got = apply_in_windows(block, x, (side, side), lambda shape: table.bias(shape, torch.float32))

    height, width = (side * math.ceil(n / side) for n in size)
    padded = torch.randn(2, height, width, TINY['embed_dims'])  # values must not matter
    padded[:, : size[0], : size[1]] = x
    real = torch.zeros(height, width, dtype=torch.bool)
    real[: size[0], : size[1]] = True
    bias = slow_bias(table.relative_position_bias_table, (side, side), (side, side))
    expected = torch.zeros_like(padded)
    for y in range(0, height, side):
        for x_ in range(0, width, side):
            window = (slice(y, y + side), slice(x_, x_ + side))
            masked = bias.masked_fill(~real[window].flatten(), -math.inf)
            tokens = padded[(slice(None), *window)].flatten(1, 2)
            expected[(slice(None), *window)] = block(tokens, masked).view(2, side, side, -1)
    torch.testing.assert_close(got, expected[:, : size[0], : size[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
@pytest.mark.parametrize('size', [(60, 84), (64, 64), (24, 40), (5, 7), (96, 33)])
def test_any_size(rel_pos, size):
    x = image(*size)
    model = tiny(rel_pos=rel_pos)
    maps = model(x)
    h, w = (math.ceil(n / 8) for n in size)
    shapes = [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), (math.ceil(h / 2), math.ceil(w / 2))]
    assert [tuple(out.shape) for out in maps] == [(2, 64, *shape) for shape in shapes]
    padded = nn.functional.pad(x, (0, 8 * w - size[1], 0, 8 * h - size[0]))
    for out, same in zip(maps, model(padded), strict=True):
        assert torch.equal(out, same)


def test_smaller_images_crop_the_positions():
    model = tiny()
    table, pos_embed = model.global_rel_pos_bias, model.pos_embed.view(8, 8, -1)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.extend(args))
    x = image(24, 40)
    model(x)
    tokens = model.patch_embed(x) + pos_embed[:3, :5]
    torch.testing.assert_close(seen[0], tokens.flatten(1, 2))
    expected = slow_bias(table.relative_position_bias_table, (8, 8), (3, 5))
    assert torch.equal(seen[1], expected)


def test_enlarged_table_keeps_its_center_and_crops_the_other_axis():
    table = torch.randn(15 * 15, 4)
    larger = fit_offsets(table, (8, 8), (11, 6)).view(21, 11, 4)
    assert torch.allclose(larger[10], table.view(15, 15, 4)[7, 2:13], atol=1e-6)


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
@pytest.mark.parametrize('size', [48, 64, 80])
def test_loading_at_another_size_equals_running_at_it(rel_pos, size):
    source = tiny(rel_pos=rel_pos)
    model = tiny(rel_pos=rel_pos, img_size=size)
    model.load_state_dict(source.state_dict())
    x = image(size, size)
    for out, expected in zip(model(x), source(x), strict=True):
        torch.testing.assert_close(out, expected)


def test_own_weights_are_unchanged_and_smaller_windows_crop():
    source = tiny()
    state = source.state_dict()
    fitted = source.fit_state(state)
    assert fitted.keys() == state.keys()
    assert all(torch.equal(fitted[key], state[key]) for key in state)
    smaller = tiny(window_size=2).fit_state(state)[f'windowed_rel_pos_bias.{TABLE}']
    cut = state[f'windowed_rel_pos_bias.{TABLE}'].view(7, 7, -1)[2:5, 2:5].flatten(0, 1)
    assert torch.equal(smaller, cut)
    blocks = tiny(rel_pos='per_block')
    blocks.load_state_dict(state)
    x = image(64, 64)
    for out, expected in zip(blocks(x), source(x), strict=True):
        assert torch.equal(out, expected)


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
def test_every_parameter_gets_a_gradient_also_with_checkpointing(rel_pos):
    model, x = tiny(rel_pos=rel_pos, drop_path_rate=0.2).train(), image(60, 84)
    grads = {}
    for model.with_cp in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        sum(out.square().mean() for out in model(x)).backward()
        grads[model.with_cp] = {name: p.grad.clone() for name, p in model.named_parameters()}
    for name, grad in grads[False].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(grads[True][name], grad, msg=name)


def test_bfloat16_autocast():
    model, x = tiny().train(), image(64, 64)
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[1].dtype))
    expected = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        maps = model(x)
        sum(out.float().square().mean() for out in maps).backward()
    assert seen == [torch.float32, torch.bfloat16]
    for out, exact in zip(maps, expected, strict=True):
        assert relative_error(out.detach().float(), exact.detach()) < 0.05
    assert model.global_rel_pos_bias.relative_position_bias_table.grad.dtype == torch.float32


def test_number_of_parameters_of_base():
    with torch.device('meta'):
        model = MCBEiTDetViT('base', init_cfg=None)
    d, hidden, heads = 768, 3072, 12
    attention = 3 * d * d + 2 * d + d * d + d
    block = attention + 2 * d * hidden + hidden + d + 4 * d + 2 * d
    tables = heads * (31**2 + 127**2)
    adaptors = 3 * (4 * d * d + d) + 2 * d
    total = 12 * block + (16 * 16 * 3 + 1) * d + 64 * 64 * d + tables + adaptors
    assert sum(p.numel() for p in model.parameters()) == total
    assert (model.num_layers, model.embed_dims) == (12, d)
    assert model.global_blocks == (2, 5, 8, 11)
    assert 'MCBEiTDetViT' in MODELS


def test_initialization():
    model = MCBEiTDetViT(TINY | dict(num_layers=4), img_size=64)
    assert not model.pos_embed.any()
    assert not model.global_rel_pos_bias.relative_position_bias_table.any()
    assert model.blocks[0].attn.qkv.weight.abs().max() <= 0.02
    for conv in (model.ms_adaptor[0][0], model.ms_adaptor[0][3], model.ms_adaptor[1]):
        assert not conv.bias.any()
        assert float(conv.weight.detach().std()) == pytest.approx((64 * 4) ** -0.5, rel=0.05)


def test_pretrained_weights_through_load_state_dict():
    from mcbeit_mm.backbone import MCBEiTViT

    for rel_pos, out_type in (('shared', 'raw'), ('per_block', 'avg_featmap')):
        source = MCBEiTViT(TINY, img_size=48, patch_size=8, rel_pos=rel_pos, out_type=out_type)
        for block in source.blocks:
            nn.init.normal_(block.attn.q_bias)
        model = tiny(rel_pos=rel_pos)
        result = model.load_state_dict(source.state_dict(), strict=False)
        extra = {'cls_token'} | (
            {'mask_token', 'norm.weight', 'norm.bias'} if out_type == 'raw' else set()
        )
        assert set(result.unexpected_keys) - {'fc_norm.weight', 'fc_norm.bias'} == extra
        assert all(k.startswith(model.fresh_parameters) for k in result.missing_keys)
        for ours, theirs in zip(model.blocks, source.blocks, strict=True):
            assert torch.equal(ours.attn.q_bias, theirs.attn.q_bias)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(global_blocks=None), '6 blocks are not divisible by 4'),
        (dict(global_blocks=(0, 2, 5)), 'four increasing indices'),
        (dict(global_blocks=(0, 3, 2, 5)), 'four increasing indices'),
        (dict(global_blocks=(-1, 2, 3, 5)), 'four increasing indices'),
        (dict(global_blocks=(0, 1, 2, 3)), 'the last block, 5'),
        (dict(rel_pos='none'), "rel_pos is 'none'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_weights_that_do_not_fit():
    model = tiny()
    with pytest.raises(ValueError, match="set rel_pos='per_block'"):
        model.fit_state({f'blocks.0.attn.{TABLE}': torch.zeros(52, 4)})
    with pytest.raises(ValueError, match='set rel_pos'):
        model.fit_state(tiny(rel_pos='per_block').state_dict())
    table = {f'rel_pos_bias.{TABLE}': torch.randn(5 * 11 + 3, 4)}
    with pytest.raises(ValueError, match=r'55 offsets .* source_grid=\(h, w\)'):
        model.fit_state(table)
    assert len(model.fit_state(table, source_grid=(3, 6))) == 2
    with pytest.raises(ValueError, match='pos_embed of 23 rows'):
        model.fit_state({'pos_embed': torch.zeros(1, 23, 64)})
