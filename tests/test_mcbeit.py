"""The algorithm: parity end to end, both paths of the loss in training, a hidden tokenizer."""

import copy

import pytest
import torch
from conftest import backbone_from
from loss_inputs import relative_norm
from mmengine.config import ConfigDict
from mmpretrain.structures import DataSample
from tiny_models import ARCH, NORM, TOKENIZER, batch, tiny

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
from mcbeit_mm.tokenizers.base import Tokenizer


class Constant(Tokenizer):
    """A tokenizer that returns given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.vocab_size, self.stride = logits, logits.shape[1], 8

    def encode(self, x):
        return self.logits


@pytest.mark.parametrize('fused', [True, False])
def test_golden_loss_end_to_end(golden, fused):
    g = golden('pretrain')
    grads = golden('pretrain_grads')
    vocab_size = g.sizes['vocab_size']
    model = tiny(
        backbone=backbone_from(g.sizes),
        head=dict(
            type='MCBEiTHead', embed_dims=g.sizes['embed_dim'], vocab_size=vocab_size,
            tau=float(grads['temp']), omega=float(grads['omega']), fused=fused,
        ),
        target_generator=Constant(g['d_logits']),
    )  # fmt: skip
    state = {
        f'head.{k}' if k.startswith('lm_head') else f'backbone.{k}': v
        for k, v in g.group('state').items()
    }
    model.load_state_dict(state)
    samples = [DataSample().set_mask(m) for m in g['mask'].view(-1, *g.sizes['grid'])]
    view = torch.rand(len(samples), 3, 32, 32)
    out = model([g['image'], view], samples, mode='loss')
    assert float(out['loss'].detach()) == pytest.approx(float(grads['loss']), rel=1e-6)


def trained(dtype=None, steps=3, **head):
    """Metrics and gradients of each step: a 3 x 5 grid, uneven masks, 37 codes."""
    torch.manual_seed(0)
    model = tiny(
        backbone=dict(type='MCBEiTViT', arch=ARCH, img_size=(48, 80)),
        head=dict(type='MCBEiTHead', embed_dims=32, vocab_size=37, **head),
        target_generator=dict(TOKENIZER, n_embed=37),
    ).train()
    for param in model.tokenizer.parameters():  # otherwise all codes are equally likely
        param.data *= 1.5
    model.head.lm_head.weight.data *= 30  # otherwise the loss is log(vocab_size)
    views = [torch.randn(4, 3, 48, 80), torch.rand(4, 3, 24, 40)]
    masks = [torch.rand(15).argsort().view(3, 5) < count for count in (2, 15, 0, 7)]
    samples = [DataSample().set_mask(mask) for mask in masks]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = []
    for _ in range(steps):
        with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            terms = model(views, samples, mode='loss')
        optimizer.zero_grad()
        terms['loss'].backward()
        optimizer.step()
        grads = {name: param.grad.clone() for name, param in model.named_parameters()}
        history.append(({name: float(value.detach()) for name, value in terms.items()}, grads))
    return history


# fp32: rounding errors grow from step to step, so gradients get the 1e-4 of the parity tests. bf16:
# the paths sum the same rounded products in another order. One rounding is 2^-9 = 0.2 %; the loss
# averages 24 patches, a gradient accumulates about ten roundings through the layers.
@pytest.mark.parametrize(
    'dtype, loss_bound, grad_bound', [(None, 1e-5, 1e-4), (torch.bfloat16, 1e-3, 2e-2)]
)
def test_fused_and_plain_loss_train_alike(dtype, loss_bound, grad_bound):
    fused, plain = trained(dtype), trained(dtype, fused=False)
    assert len({terms['loss'] for terms, _ in plain}) == 3
    for (terms, grads), (expected, expected_grads) in zip(fused, plain, strict=True):
        assert terms == pytest.approx(expected, rel=loss_bound)
        assert grads.keys() == expected_grads.keys()
        for name, grad in expected_grads.items():
            assert relative_norm(grads[name], grad) <= grad_bound, name
    # The bounds would catch a missing gradient through the affinity.
    _, other = trained(dtype, steps=1, fused=False, detach_affinity=True)[0]
    errors = {name: relative_norm(other[name], grad) for name, grad in plain[0][1].items()}
    assert max(errors.values()) > 2 * grad_bound


def test_tokenizer_is_not_a_submodule():
    model = tiny()
    names = [*model.state_dict(), *(n for n, _ in model.named_parameters())]
    names += [n for n, _ in model.named_modules()]
    assert not [n for n in names if 'tokenizer' in n or 'target_generator' in n or 'quant' in n]
    assert isinstance(model.tokenizer, GumbelVQGANTokenizer)
    model.train()
    assert not model.tokenizer.training
    inputs, samples = batch()
    before = copy.deepcopy(model.tokenizer.state_dict())
    loss = model(inputs, samples, mode='loss')['loss']
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = model.tokenizer.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_tokenizer_follows_moves_of_the_model():
    model = tiny().to('meta')
    assert {p.device.type for p in model.tokenizer.parameters()} == {'meta'}


def test_every_parameter_gets_a_gradient():
    model = tiny().train()
    model(*batch(), mode='loss')['loss'].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_train_step_through_the_preprocessor_uses_both_normalizations():
    model = tiny()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    small = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    out = model.data_preprocessor(dict(inputs=[pixels, small], data_samples=None))['inputs']
    mean, std = (torch.tensor(NORM[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    torch.testing.assert_close(out[0], (pixels.flip(1).float() - mean) / std)
    torch.testing.assert_close(out[1], small.flip(1).float() / 255)


def test_extract_feat_sees_the_whole_image():
    model = tiny().eval()
    inputs, _ = batch()
    assert torch.equal(model(inputs, mode='tensor')[0], model.backbone(inputs[0])[0])


def test_vocabularies_must_agree():
    with pytest.raises(ValueError, match='model.head.vocab_size=24'):
        tiny(head=dict(type='MCBEiTHead', embed_dims=32, vocab_size=8192))


def test_vocab_size_defaults_to_the_tokenizers():
    head = ConfigDict(type='MCBEiTHead', embed_dims=32, vocab_size=None)
    model = tiny(head=head)
    assert model.head.vocab_size == len(model.head.lm_head.weight) == 24
    assert head == dict(type='MCBEiTHead', embed_dims=32, vocab_size=None)


@pytest.mark.parametrize('size, tokens', [((64, 64), '8x8'), ((32, 24), '4x3')])
def test_grids_must_agree(size, tokens):
    inputs, samples = batch()
    message = f'gives {tokens} tokens .stride 8. for 4x4 patches: set second_size=32'
    with pytest.raises(ValueError, match=message):
        tiny()([inputs[0], torch.rand(2, 3, *size)], samples, mode='loss')


def test_bf16_autocast_leaves_the_tokenizer_in_fp32():
    model = tiny()
    inputs, samples = batch()
    exact = model.tokenizer(inputs[1])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(model.tokenizer(inputs[1]), exact)
        loss = model(inputs, samples, mode='loss')['loss']
    assert loss.dtype == torch.float32


def test_half_precision_tokenizer_is_a_setting():
    inputs, samples = batch()
    model = tiny(tokenizer_precision='fp16')
    found = model.loss(inputs, samples)['loss']
    model.tokenizer.precision = 'fp32'
    exact = model.loss(inputs, samples)['loss']
    assert 0 < abs(found - exact) < 1e-3 * exact
    with pytest.raises(ValueError, match="tokenizer_precision is 'half'"):
        tiny(tokenizer_precision='half')


@pytest.mark.gpu
def test_cuda_step():
    model = tiny().cuda()
    inputs, samples = batch()
    with torch.autocast('cuda', dtype=torch.float16):
        loss = model([x.cuda() for x in inputs], samples, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite()
