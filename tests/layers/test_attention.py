"""Every implementation of attention against the formula."""

import pytest
import torch
from conftest import relative_error

from mcbeit_mm import detection
from mcbeit_mm.detection import MCBEiTDetViT
from mcbeit_mm.layers import attention
from mcbeit_mm.layers.attention import BandedBias, attend, offset_bias
from mcbeit_mm.layers.rel_pos import num_table_rows, table_to_bias

ARCH = dict(embed_dims=32, num_layers=8, num_heads=2, feedforward_channels=64)


def slow_bias(offsets, grid):
    h, w = grid
    bias = torch.empty(1, len(offsets), h * w, h * w, dtype=offsets.dtype)
    for query in range(h * w):
        for key in range(h * w):
            dy, dx = query // w - key // w, query % w - key % w
            bias[0, :, query, key] = offsets[:, dy + h - 1, dx + w - 1]
    return bias


def slow_attention(q, k, v, bias):
    scores = torch.einsum('bhqd,bhkd->bhqk', q, k) / q.shape[-1] ** 0.5
    return torch.einsum('bhqk,bhkd->bhqd', (scores + bias).softmax(-1), v)


def inputs(grid, batch=2, heads=3, dims=4, dtype=torch.double):
    h, w = grid
    qkv = [torch.randn(batch, heads, h * w, dims, dtype=dtype) for _ in range(3)]
    offsets = torch.randn(heads, 2 * h - 1, 2 * w - 1, dtype=dtype)
    return [x.requires_grad_() for x in (*qkv, offsets)]


@pytest.mark.parametrize('grid', [(3, 5), (5, 3), (1, 4), (4, 1), (1, 1)])
def test_bias_of_a_band_is_a_part_of_the_whole(grid):
    offsets = inputs(grid)[-1].detach()
    whole = slow_bias(offsets, grid)
    for top in range(grid[0]):
        for bottom in range(top + 1, grid[0] + 1):
            found = offset_bias(offsets, grid, top, bottom)
            assert torch.equal(found, whole[:, :, top * grid[1] : bottom * grid[1]])


@pytest.mark.parametrize('grid', [(3, 5), (5, 3), (1, 7), (6, 1)])
@pytest.mark.parametrize('queries, batch', [(1, 1), (5, 2), (7, 1), (1000, 2)])
def test_bands_equal_the_formula(monkeypatch, grid, queries, batch):
    monkeypatch.setattr(attention, 'BAND_QUERIES', queries)
    q, k, v, offsets = all_inputs = inputs(grid, batch)
    found = BandedBias(offsets, grid).attend(q, k, v)
    expected = slow_attention(q, k, v, slow_bias(offsets, grid))
    assert relative_error(found.detach(), expected.detach()) < 1e-12
    upstream = torch.randn_like(found)
    for got, wanted in zip(
        torch.autograd.grad(found, all_inputs, upstream),
        torch.autograd.grad(expected, all_inputs, upstream),
        strict=True,
    ):
        assert relative_error(got, wanted) < 1e-10
    with torch.no_grad():
        again = BandedBias(offsets, grid).attend(q, k, v)
        assert relative_error(again, expected) < 1e-12


@pytest.mark.parametrize('with_bias', [True, False])
def test_attention_with_and_without_gradients(with_bias):
    q, k, v, offsets = inputs((2, 3))
    bias = slow_bias(offsets, (2, 3)) if with_bias else None
    expected = slow_attention(q, k, v, bias if with_bias else 0)
    assert relative_error(attend(q, k, v, bias), expected) < 1e-12
    with torch.no_grad():
        assert relative_error(attend(q, k, v, bias), expected) < 1e-12
    assert torch.autograd.gradcheck(attend, (q, k, v, bias))
    if with_bias:  # padding is ignored
        wider = torch.nn.functional.pad(bias, (0, 2), value=torch.nan)
        assert torch.equal(attend(q, k, v, wider), attend(q, k, v, bias))


def test_half_precision_keeps_its_dtype():
    q, k, v, offsets = inputs((2, 3), dtype=torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    with torch.autocast('cpu', torch.bfloat16):
        found = BandedBias(offsets, (2, 3)).attend(*half)
    assert found.dtype == torch.bfloat16
    expected = slow_attention(q, k, v, slow_bias(offsets, (2, 3)))
    assert relative_error(found.float(), expected) < 2**-5
    found.float().sum().backward()
    assert offsets.grad.dtype == torch.float32


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
@pytest.mark.parametrize('with_cp', [False, True])
def test_detection_backbone_in_bands(monkeypatch, rel_pos, with_cp):
    model = MCBEiTDetViT(ARCH, img_size=96, window_size=4, rel_pos=rel_pos, with_cp=with_cp).train()
    for name, parameter in model.named_parameters():
        if 'table' in name:
            torch.nn.init.normal_(parameter)
    image = torch.randn(1, 3, 75, 109)  # 5 x 7 patches
    results = []
    for threshold in (10**9, 30):  # between 16 patches of a window and 35 of the map
        monkeypatch.setattr(detection, 'BANDED_FROM', threshold)
        monkeypatch.setattr(attention, 'BAND_QUERIES', 10)
        model.zero_grad(set_to_none=True)
        maps = model(image)
        sum(x.square().sum() for x in maps).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((maps, gradients))
    (whole, expected), (banded, found) = results
    assert found.keys() == expected.keys() and sum('table' in name for name in found) >= 2
    for got, wanted in zip(banded, whole, strict=True):
        assert relative_error(got, wanted) < 1e-5
    for name, wanted in expected.items():
        assert relative_error(found[name], wanted) < 1e-4, name


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_bands_on_cuda(dtype):
    grid = (9, 13)
    exact = inputs(grid, heads=2, dims=32)
    q, k, v, offsets = (x.detach().cuda().requires_grad_() for x in exact)
    with torch.autocast('cuda', dtype):
        half = [x.to(dtype) for x in (q, k, v)]
        found = BandedBias(offsets.float(), grid).attend(*half)
    expected = slow_attention(*exact[:3], slow_bias(exact[3], grid))
    assert relative_error(found.cpu().double(), expected) < 2**-5
    found.float().sum().backward()
    expected.sum().backward()
    # The sums of a softmax's gradients cancel, hence an absolute bound.
    gap = (offsets.grad.cpu() - exact[3].grad).abs().max()
    assert gap < 0.05 * exact[2].grad.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('trainable', [True, False])  # they use different kernels
def test_aligned_bias_on_cuda(dtype, trainable):
    grid = (14, 14)  # 197 tokens: rows of 200
    q, k, v = (torch.randn(2, 2, 197, 32) for _ in range(3))
    table = torch.randn(num_table_rows(grid), 2)
    with torch.set_grad_enabled(trainable):
        on_cuda = [x.cuda().requires_grad_(trainable) for x in (q, k, v, table)]
        halves = [x.to(dtype) for x in on_cuda[:3]]
        found = attend(*halves, table_to_bias(on_cuda[3], grid, grid))
    expected = slow_attention(q, k, v, table_to_bias(table, grid, grid)[..., :197])
    assert relative_error(found.detach().cpu().float(), expected) < 2**-5
    if trainable:
        found.float().sum().backward()
        assert on_cuda[3].grad.dtype == torch.float32 and on_cuda[3].grad.isfinite().all()
