"""Position tables and embeddings fit any grid as the authors convert them, or are refused."""

import pytest
import torch
from conftest import backbone_from, relative_error
from tiny_backbones import finetuned, tiny

from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.errors import SetupError
from mcbeit_mm.weights.names import BLOCK_TABLE, SHARED_TABLE
from mcbeit_mm.weights.positions import stretch_pos_embed, table_grid


def test_segmentation_equals_the_authors_loader(golden):
    g = golden('seg_convert')
    sizes = g.sizes | dict(img_size=[g.sizes['dst_img']] * 2)
    model = backbone_from(
        sizes, rel_pos='per_block', abs_pos=True, out_type='featmap', final_norm=False
    )
    state = {SHARED_TABLE: g['rel/src_table'], 'pos_embed': g['abs/src_pos_embed']}
    load_weights(model, state, min_match=0)
    tables = torch.stack([block.attn.relative_position_bias_table for block in model.blocks])
    assert relative_error(tables, g['rel/dst_tables']) < 1e-5
    assert relative_error(model.pos_embed, g['abs/dst_pos_embed']) < 1e-5


def test_embeddings_equal_the_authors_conversion(golden):
    g = golden('finetune_convert')
    sizes = g.sizes | dict(img_size=[g.sizes['large_img']] * 2)
    model = backbone_from(sizes, rel_pos='none', abs_pos=True, out_type='cls_token')
    state = g.group('src') | {'pos_embed': g['abs/src_pos_embed']}
    load_weights(model, state)
    assert relative_error(model.pos_embed, g['abs/large_pos_embed']) < 1e-5


def test_absolute_positions_of_the_authors_load(golden):
    g = golden('finetune_abs')
    model = backbone_from(g.sizes, rel_pos='none', abs_pos=True, out_type='cls_token').eval()
    load_weights(model, g.group('state'))
    assert relative_error(model(g['image'])[0], g['forward_features']) < 1e-5
    grid = model.patch_grid(*g.sizes['large'])
    embedding = stretch_pos_embed(model.pos_embed, model.grid, grid)
    assert relative_error(embedding, g['large/pos_embed']) < 1e-5
    assert relative_error(model(g['large/image'])[0], g['large/forward_features']) < 1e-5
    # Converting a checkpoint resizes to the exact grid instead: close, not equal.
    sizes = g.sizes | dict(img_size=g.sizes['large'])
    larger = backbone_from(sizes, rel_pos='none', abs_pos=True, out_type='cls_token')
    load_weights(larger, g.group('state'))
    assert 1e-3 < relative_error(larger.pos_embed, embedding) < 0.5


@pytest.mark.parametrize('target', [(7, 9), (3, 4), (12, 5), (64, 40)])
def test_stretching_gives_the_target_grid(target):
    pos_embed = torch.randn(1, 1 + 4 * 5, 8, requires_grad=True)
    stretched = stretch_pos_embed(pos_embed, (4, 5), target)
    assert stretched.shape == (1, 1 + target[0] * target[1], 8)
    stretched.sum().backward()
    assert pos_embed.grad.abs().sum() > 0
    assert stretch_pos_embed(pos_embed, (4, 5), (4, 5)) is pos_embed


@pytest.mark.parametrize('size', [(96, 96), (32, 48), (80, 32), (48, 48)])
@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
def test_loading_at_another_size_equals_forward(size, rel_pos):
    """Resizing on loading or in forward gives the same features, also for non-square grids."""
    source = tiny(rel_pos=rel_pos)
    model = tiny(img_size=size, rel_pos=rel_pos)
    load_weights(model, source.state_dict())
    x = torch.randn(2, 3, *size)
    assert relative_error(model(x)[0], source(x)[0]) < 1e-5


def test_grid_of_a_table():
    square, wide = 7 * 7, 3 * 9
    assert table_grid(square, own=(6, 6)) == (4, 4)
    assert table_grid(wide, own=(2, 5)) == (2, 5)
    with pytest.raises(ValueError, match='27 offsets fits neither .*set the img_size'):
        table_grid(wide, own=(4, 4))


def test_non_square_sources(tmp_path):
    source = tiny(img_size=(32, 80))
    model = finetuned(img_size=(32, 80))
    load_weights(model, source.state_dict())
    assert torch.equal(
        model.blocks[1].attn.relative_position_bias_table,
        source.rel_pos_bias.relative_position_bias_table,
    )
    other = finetuned()
    with pytest.raises(SetupError, match='img_size of the weights'):
        load_weights(other, source.state_dict())


def test_kinds_of_tables():
    with pytest.raises(SetupError, match="rel_pos='per_block'"):
        load_weights(tiny(), finetuned().state_dict())
    report = load_weights(tiny(rel_pos='none'), tiny().state_dict())
    assert report.unused == [SHARED_TABLE] and not report.missing
    detector = finetuned().state_dict()
    for name in detector:
        if name.endswith(BLOCK_TABLE):
            detector[name] = detector[name][:-3]
    with pytest.raises(SetupError, match='of a detector, load those that it started from'):
        load_weights(finetuned(), detector)
    load_weights(tiny(rel_pos='none', out_type='avg_featmap'), detector)


def test_both_kinds_of_tables_are_refused():
    state = tiny(rel_pos='shared').state_dict()
    own = tiny(rel_pos='per_block').state_dict()
    tables = {k: v + 1 for k, v in own.items() if k.endswith('relative_position_bias_table')}
    with pytest.raises(ValueError, match='a shared position table and different ones per block'):
        load_weights(tiny(rel_pos='per_block'), state | tables)
