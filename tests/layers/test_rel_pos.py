"""Relative position tables: index and bias against slow loops, resizing against a spline."""

import pytest
import torch
from conftest import relative_error
from torch import nn

from mcbeit_mm.layers.rel_pos import (
    KeptBiases,
    axis_matrix,
    num_table_rows,
    position_index,
    resize_detection_table,
    resize_table,
    table_to_bias,
)


def test_index_counts_offsets_query_minus_key():
    height, width = grid = (2, 3)
    index = position_index(grid, torch.device('cpu'))
    cells = [(y, x) for y in range(height) for x in range(width)]
    for q, (qy, qx) in enumerate(cells, start=1):
        for k, (ky, kx) in enumerate(cells, start=1):
            expected = (qy - ky + height - 1) * (2 * width - 1) + (qx - kx + width - 1)
            assert index[q, k] == expected
    rows = num_table_rows(grid)
    assert index[0, 1:].eq(rows - 3).all() and index[1:, 0].eq(rows - 2).all()
    assert index[0, 0] == rows - 1


def test_index_equals_the_authors(golden):
    g = golden('pretrain')
    index = position_index(tuple(g.sizes['grid']), torch.device('cpu'))
    assert torch.equal(index, g['state/rel_pos_bias.relative_position_index'])


def test_bias_looks_up_the_table():
    table = torch.randn(num_table_rows((2, 2)), 3)
    bias = table_to_bias(table, (2, 2), (2, 2))
    index = position_index((2, 2), torch.device('cpu'))
    assert bias.shape == (1, 3, 5, 8)
    assert torch.equal(bias[0, 1, 2, 4], table[index[2, 4], 1])


@pytest.mark.parametrize('grid', [(14, 14), (1, 1), (1, 7), (3, 5)])
def test_rows_are_aligned_and_their_padding_has_no_gradient(grid):
    table = torch.randn(num_table_rows(grid), 2, requires_grad=True)
    bias, size = table_to_bias(table, grid, grid), 1 + grid[0] * grid[1]
    assert bias.is_contiguous() and bias.shape[-1] - size in range(8)
    for half in (bias.to(torch.bfloat16), bias):  # required by kernels for 16-bit types
        cut = half[..., :size]
        assert all(stride % 8 == 0 for stride in cut.stride()[:-1]) and cut.stride(-1) == 1
    index = position_index(grid, torch.device('cpu'))
    assert torch.equal(cut, table[index].permute(2, 0, 1)[None])
    upstream = torch.randn_like(cut)
    (found,) = torch.autograd.grad(cut, table, upstream)
    expected = torch.zeros_like(table).index_add_(
        0, index.flatten(), upstream[0].permute(1, 2, 0).reshape(-1, 2)
    )
    assert relative_error(found, expected) < 1e-5


def test_cached_biases_follow_their_tables():
    kept, grid, other = KeptBiases(), (2, 3), (3, 3)
    tables = [nn.Parameter(torch.randn(num_table_rows(grid), 2)) for _ in range(2)]
    with torch.no_grad():
        first = kept.get(tables, grid, grid)
        assert kept.get(tables, grid, grid) is first
        assert torch.equal(first[1], table_to_bias(tables[1], grid, grid))
        assert kept.get(tables, grid, other)[0].shape[-2] == 10

        state = {str(i): torch.randn_like(table) for i, table in enumerate(tables)}
        changes = (
            lambda: tables[1].add_(1),
            lambda: nn.ParameterList(tables).load_state_dict(state),
            lambda: setattr(tables[1], 'data', torch.randn_like(tables[1])),
            lambda: nn.ParameterList(tables).double(),
        )
        for change in changes:
            before = kept.get(tables, grid, grid)
            change()
            after = kept.get(tables, grid, grid)
            assert after is not before
            assert torch.equal(after[1], table_to_bias(tables[1], grid, grid))


def test_large_biases_are_not_cached(monkeypatch):
    monkeypatch.setattr('mcbeit_mm.layers.rel_pos.KEPT_BYTES', 100)
    kept, tables = KeptBiases(), [torch.randn(num_table_rows((2, 3)), 2)]
    assert kept.get(tables, (2, 3), (2, 3)) is not kept.get(tables, (2, 3), (2, 3))


@pytest.mark.parametrize('source, target', [((4, 4), (3, 6)), ((3, 5), (7, 4)), ((1, 4), (2, 2))])
def test_non_square_and_shrinking_grids(source, target):
    table = torch.randn(num_table_rows(source), 2, dtype=torch.float64)
    out = resize_table(table, source, target)
    assert out.shape == (num_table_rows(target), 2)
    assert torch.equal(out[-3:], table[-3:])
    constant = resize_table(torch.ones_like(table), source, target)
    torch.testing.assert_close(constant, torch.ones_like(constant))


def test_growing_keeps_center_and_mirror_symmetry():
    matrix = axis_matrix(14, 24, torch.device('cpu'), torch.float64)
    assert matrix.shape == (47, 27)
    torch.testing.assert_close(matrix[23], torch.eye(27, dtype=torch.float64)[13])
    torch.testing.assert_close(matrix.flip(0, 1), matrix)


def test_same_grid_is_the_identity_and_gradients_flow():
    table = torch.randn(num_table_rows((3, 3)), 2, dtype=torch.float64, requires_grad=True)
    assert resize_table(table, (3, 3), (3, 3)) is table
    assert torch.autograd.gradcheck(lambda t: resize_table(t, (3, 3), (4, 5)), (table,))


def test_resizing_equals_a_direct_spline():
    """The matrix product equals the tensor-product spline of the authors' interp2d."""
    from scipy.interpolate import RectBivariateSpline

    from mcbeit_mm.layers.rel_pos import _geometric_positions

    table = torch.randn(num_table_rows((4, 4)), 2, dtype=torch.float64)
    out = resize_table(table, (4, 4), (6, 6))[:-3].view(11, 11, 2)
    at, wanted = _geometric_positions(4, 6), range(-5, 6)
    for head in range(2):
        spline = RectBivariateSpline(at, at, table[:-3, head].view(7, 7).numpy(), kx=3, ky=3)
        expected = torch.from_numpy(spline(wanted, wanted))
        torch.testing.assert_close(out[..., head], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('number', range(3))
def test_detection_tables_equal_the_authors_at_any_size(golden, number):
    g = golden('det_convert')
    source, target = g.sizes['interp_src'], g.sizes['interp_dst'][number]
    out = resize_detection_table(g['interp/src'], (source, source), (target, target))
    assert relative_error(out, g[f'interp/dst{number}']) < 1e-5


def test_growing_tables_equal_the_authors(golden):
    g = golden('finetune_convert')
    source, target = (g.sizes[key] // g.sizes['patch_size'] for key in ('src_img', 'large_img'))
    assert target > source
    for name, expected in g.group('large').items():
        if name.endswith('relative_position_bias_table'):
            shared = g['ckpt/rel_pos_bias.relative_position_bias_table']
            out = resize_table(shared, (source, source), (target, target))
            assert relative_error(out, expected) < 1e-5


def test_matrices_made_in_inference_mode_serve_training():
    grid = (5, 7)  # used by no other test, so not cached yet
    with torch.inference_mode():
        table_to_bias(torch.zeros(num_table_rows((3, 3)), 2), (3, 3), grid)
    table = torch.zeros(num_table_rows((3, 3)), 2, requires_grad=True)
    table_to_bias(table, (3, 3), grid).sum().backward()
    assert table.grad.abs().sum() > 0
