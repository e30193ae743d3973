"""The fused loss against the plain one: chunks, odd shapes, half precision, memory."""

from unittest import mock

import pytest
import torch
from loss_inputs import loss_inputs, relative_norm, with_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from mcbeit_mm.layers import fused_loss
from mcbeit_mm.layers.fused_loss import MaskedPlaces, Precision
from mcbeit_mm.losses import MultiChoiceLoss, multi_choice_loss


@pytest.mark.parametrize(
    'grid, dims, vocab_size, counts',
    [
        ((3, 5), 7, 65, (4,)),  # one image, vocab_size not a multiple of 64
        ((2, 3), 5, 13, (0, 6, 2)),  # one image fully visible, one fully masked
        ((4, 4), 8, 130, (9, 9, 9, 9)),  # equal counts, as RandomPatchMask makes them
        ((1, 4), 3, 2, (4, 4, 4, 4, 4)),
    ],
)
@pytest.mark.parametrize('images_per_chunk, omega', [(1, 0.2), (2, 0.0), (2, 1.0), (16, 0.2)])
def test_equals_the_plain_loss(grid, dims, vocab_size, counts, omega, images_per_chunk):
    inputs = loss_inputs(grid, dims, vocab_size, counts, channels_last=vocab_size == 130)
    size = {'cpu': images_per_chunk * grid[0] * grid[1] * vocab_size}
    with mock.patch.object(fused_loss, 'CHUNK_ELEMENTS', size):
        got = with_gradients(inputs, omega=omega)
    expected = with_gradients(inputs, omega=omega, fused=False)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_non_contiguous_inputs():
    feats, weight, bias, logits, mask = loss_inputs((3, 4), 6, 17, (5, 7))
    odd = (
        feats.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        torch.stack((weight, weight), -1)[..., 0].detach().requires_grad_(),
        torch.stack((bias, bias), -1)[..., 0].detach().requires_grad_(),
        logits.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        torch.stack((mask, mask), -1)[..., 0],
    )
    assert not any(x.is_contiguous() for x in odd)
    got = with_gradients(odd)
    expected = with_gradients((feats, weight, bias, logits, mask), fused=False)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_gradient_can_be_scaled_and_taken_twice():
    inputs = loss_inputs((2, 3), 4, 9, (3, 4))
    loss = multi_choice_loss(*inputs)
    once = torch.autograd.grad(loss, inputs[:3], retain_graph=True)
    scaled = torch.autograd.grad(1024 * loss, inputs[:3])
    torch.testing.assert_close([1024 * g for g in once], list(scaled), rtol=1e-12, atol=0)


def test_without_gradients_none_are_computed():
    inputs, loss = loss_inputs((2, 3), 4, 9, (3, 4)), MultiChoiceLoss()
    with torch.no_grad(), mock.patch.object(fused_loss, '_linear_gradients', None):
        terms = loss.terms(*inputs)
    for name, expected in loss.terms(*inputs).items():
        assert torch.equal(terms[name], expected)


# Bounds of loss and gradients. One rounding is 2^-9 = 2e-3 in bf16 and 2^-12 = 2.4e-4 in fp16; a
# gradient is a difference of probabilities, whose error is a few times larger.
HALF = {torch.bfloat16: (5e-3, 2e-2), torch.float16: (1e-3, 4e-3)}


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('mix', ['exact', 'fp16'])  # as on CPU and on CUDA
def test_half_precision_stays_within_bounds_of_fp64(dtype, mix):
    exact = loss_inputs((7, 7), 64, 1000, (20, 37, 49))
    expected = with_gradients(exact, fused=False)
    inputs = [x.detach().float().requires_grad_(x.requires_grad) for x in exact[:4]] + [exact[4]]
    precision = Precision(dtype, torch.float16 if mix == 'fp16' else torch.float32, torch.float32)
    with (
        torch.autocast('cpu', dtype=dtype),
        mock.patch.object(Precision, 'of', lambda rows, weight: precision),
    ):
        got = with_gradients(inputs)
    compare(got, expected, *HALF[dtype])


def compare(got, expected, loss_bound, grad_bound):
    """Compare loss, target entropy and the norm of each gradient's error."""
    for name in ('loss', 'target_entropy'):
        value = expected[0][name]
        assert abs(got[0][name].cpu() - value) <= loss_bound * value
    for grad, wanted in zip(got[1], expected[1], strict=True):
        assert relative_norm(grad.cpu().double(), wanted) <= grad_bound


def test_fp16_gradients_neither_overflow_nor_vanish():
    """A collapsed head: all residuals of one code add up, those of the others are below 1e-6."""
    feats = torch.full((2, 256, 8), 27.0)
    weight, bias = torch.zeros(4096, 8), torch.zeros(4096)
    token_logits = torch.zeros(2, 4096, 256)
    token_logits[:, 0] = 60.0
    mask = torch.ones(2, 256, dtype=torch.bool)

    def gradients(dtype, **autocast):
        inputs = [x.to(dtype).requires_grad_() for x in (feats, weight, bias)]
        with torch.autocast('cpu', dtype=torch.float16, **autocast):
            loss = multi_choice_loss(*inputs, token_logits.to(dtype), mask, tau=1.0)
        return torch.autograd.grad(65536 * loss, inputs[1:])

    expected = gradients(torch.float64, enabled=False)
    for got, want in zip(gradients(torch.float32), expected, strict=True):
        assert got.isfinite().all() and (got != 0).all()
        assert relative_norm(got.double(), want) < 2e-3


def test_autocast_dtype_decides():
    rows, weight = torch.zeros(1, 1, 2), torch.zeros(3, 2)
    fp32 = torch.float32
    assert Precision.of(rows, weight) == (fp32, fp32, fp32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert Precision.of(rows, weight) == (torch.bfloat16, fp32, fp32)
    assert Precision.of(rows.double(), weight) == (torch.float64,) * 3


def test_places_of_masks():
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    places = MaskedPlaces.of(mask, torch.device('cpu'))
    assert places.order.tolist() == [[1, 3, 0], [0, 1, 2], [0, 1, 2]]
    assert places.valid.tolist() == [[True, True, False], [True] * 3, [False] * 3]
    assert MaskedPlaces.of(mask[:1], torch.device('cpu')).valid is None


def test_no_tensor_of_all_patches_and_codes_is_made():
    feats, weight, bias, logits, mask = loss_inputs((4, 4), 8, 96, (12,) * 6, torch.float32)
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):  # views share the storage of the logits
                made.append(out.untyped_storage())
            return out

    with Watch(), mock.patch.object(fused_loss, 'CHUNK_ELEMENTS', {'cpu': 16 * 96}):
        multi_choice_loss(feats, weight, bias, logits, mask).backward()
    sizes = [x.nbytes() // 4 for x in made if x.data_ptr() != logits.data_ptr()]
    assert max(sizes) == 16 * 96  # one image, of six


@pytest.mark.slow
def test_compiled_equals_eager():
    inputs = loss_inputs((3, 4), 8, 96, (5, 7, 12), dtype=torch.float32)
    got = with_gradients(inputs, compiled=True)
    torch.testing.assert_close(got, with_gradients(inputs), rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [None, *HALF])
def test_cuda_equals_fp64(dtype):
    exact = loss_inputs((14, 14), 64, 1000, range(140, 149))
    expected = with_gradients(exact, fused=False)
    inputs = [x.detach().float().cuda().requires_grad_(x.requires_grad) for x in exact[:4]]
    with torch.autocast('cuda', dtype=dtype, enabled=dtype is not None):
        got = with_gradients((*inputs, exact[4]))
    compare(got, expected, *HALF.get(dtype, (1e-5, 1e-4)))
