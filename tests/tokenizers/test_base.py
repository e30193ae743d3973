import hashlib
import subprocess

import pytest
import torch
from conftest import TINY_VQGAN, relative_error
from golden_tokenizers import write_golden

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer, Tokenizer
from mcbeit_mm.tokenizers.base import sha256_of_tensors


def test_frozen():
    tokenizer = GumbelVQGANTokenizer(**TINY_VQGAN)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.train() is tokenizer
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert not tokenizer(images).requires_grad
    assert not tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.long)).requires_grad


def test_fp32_under_autocast():
    tokenizer = GumbelVQGANTokenizer(**TINY_VQGAN)
    images = torch.rand(1, 3, 16, 16)
    expected = tokenizer(images)
    with torch.autocast('cpu', torch.bfloat16):
        found = tokenizer(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(('precision', 'bound'), [('bf16', 2**-6), ('fp16', 2**-9)])
def test_half_precision_on_request(precision, bound):
    tokenizer = GumbelVQGANTokenizer(**TINY_VQGAN)
    images = torch.rand(2, 3, 16, 16)
    exact = tokenizer(images)
    tokenizer.precision = precision
    found = tokenizer(images)
    assert found.dtype == torch.float32
    assert 0 < relative_error(found, exact) < bound  # a few roundings to 8 or 11 bits
    with torch.autocast('cpu', torch.bfloat16):  # overrides an outer autocast
        assert torch.equal(tokenizer(images), found)
    tokenizer.precision = 'fp32'
    assert torch.equal(tokenizer(images), exact)


@pytest.mark.slow
def test_compiled_encoder():
    tokenizer = GumbelVQGANTokenizer(**TINY_VQGAN)
    images = torch.rand(2, 3, 16, 16)
    exact = tokenizer(images)
    tokenizer.compiled = True
    assert relative_error(tokenizer(images), exact) < 1e-5


@pytest.mark.parametrize(
    'images',
    [
        torch.rand(1, 3, 15, 16),
        torch.rand(1, 3, 16, 0),
        torch.rand(1, 1, 16, 16),
        torch.rand(3, 16, 16),
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
    ],
    ids=lambda x: f'{x.dtype} {tuple(x.shape)}',
)
def test_bad_images(images):
    with pytest.raises(ValueError, match='multiples of 2'):
        GumbelVQGANTokenizer(**TINY_VQGAN)(images)


@pytest.mark.parametrize(
    'tokens',
    [
        torch.full((1, 2, 2), 16),
        torch.full((1, 2, 2), -1),
        torch.zeros(2, 2, dtype=torch.long),
        torch.zeros(1, 2, 2, dtype=torch.bool),
        torch.zeros(1, 15, 2, 2),
        torch.zeros(1, 2, 2),
    ],
)
def test_bad_tokens(tokens):
    with pytest.raises(ValueError, match=r'in \[0, 16\)'):
        GumbelVQGANTokenizer(**TINY_VQGAN).decode(tokens)


def test_identity(tmp_path, golden):
    released = write_golden(tmp_path / 'vqgan', golden('tokenizer_gumbel'), 'gumbel')
    found = GumbelVQGANTokenizer(checkpoint=released).identity
    digest = subprocess.run(
        ['sha256sum', released / 'last.ckpt'], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert found == {
        'type': 'GumbelVQGANTokenizer',
        'checkpoint': str(released / 'last.ckpt'),
        'sha256': digest,
    }


def test_identity_without_a_file_is_that_of_the_tensors():
    tokenizer = GumbelVQGANTokenizer(**TINY_VQGAN)
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.numpy().tobytes())
    assert tokenizer.identity['checkpoint'] is None
    assert tokenizer.identity['sha256'] == digest.hexdigest()
    tokenizer.quant_conv.bias[0] += 1e-3
    assert tokenizer.identity['sha256'] == digest.hexdigest()  # computed once
    del tokenizer.__dict__['identity']
    assert tokenizer.identity['sha256'] != digest.hexdigest()


def test_sha256_of_tensors_sees_names_types_and_shapes():
    a, b = torch.zeros(4), torch.ones(2, 3)
    reference = sha256_of_tensors({'a': a, 'b': b})
    assert sha256_of_tensors({'b': b, 'a': a.clone()}) == reference
    assert sha256_of_tensors({'a': a, 'b': b.t().contiguous().t()}) == reference
    for other in ({'a': b, 'b': a}, {'a': a.view(2, 2), 'b': b}, {'a': a.int(), 'b': b}):
        assert sha256_of_tensors(other) != reference
