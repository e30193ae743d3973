import pytest
import torch
from conftest import TINY_VQGAN, relative_error
from golden_tokenizers import golden_state, images_of, save_state, write_golden

from mcbeit_mm.tokenizers import EMAVQGAN, EMAVQGANTokenizer


@pytest.fixture
def ema(golden):
    return golden('tokenizer_ema')


@pytest.fixture
def released(tmp_path, ema):
    return write_golden(tmp_path / 'vqgan_ema', ema, 'ema')


@pytest.fixture
def tokenizer(released):
    return EMAVQGANTokenizer(checkpoint=released)


def test_golden_logits_are_minus_the_distances(ema, tokenizer):
    with torch.no_grad():
        assert relative_error(tokenizer.encode_latents(ema['x']), ema['pre_quant']) <= 1e-5
    logits = tokenizer(images_of(ema)).flatten(2)
    assert relative_error(logits, -ema['distances']) <= 1e-5
    assert torch.equal(logits.argmax(dim=1), ema['indices'])


def test_argmax_of_the_authors_is_the_farthest_code(ema, tokenizer):
    logits = tokenizer(images_of(ema)).flatten(2)
    assert torch.equal(logits.argmin(dim=1), ema['indices_argmax'])
    assert not (ema['indices_argmax'] == ema['indices']).any()


def test_golden_decoder(ema, tokenizer):
    ids = ema['indices'].view(len(ema['x']), *ema['z_q'].shape[2:])
    with torch.no_grad():
        assert relative_error(tokenizer.decode_tokens(ids), ema['reconstruction']) <= 1e-5
        found = tokenizer.decode_latents(ema['z_q'])
    assert relative_error(found, ema['reconstruction']) <= 1e-5
    expected = (ema['reconstruction'] / 2 + 0.5).clamp(0, 1)
    assert relative_error(tokenizer.decode(ids), expected) <= 1e-5


def test_logits_by_their_definition():
    torch.manual_seed(1)
    model = EMAVQGAN(**TINY_VQGAN)
    latents = torch.randn(2, TINY_VQGAN['embed_dim'], 3, 5)
    difference = latents[:, None] - model.codebook[None, :, :, None, None]
    assert relative_error(model.token_logits(latents), -difference.square().sum(dim=2)) <= 1e-5


def test_codes_are_not_trainable():
    with torch.device('meta'):
        model = EMAVQGAN(TINY_VQGAN['ddconfig'], n_embed=8192, embed_dim=256)
    codes = {k: v for k, v in model.named_parameters() if k.startswith('quantize.')}
    assert {name: tuple(code.shape) for name, code in codes.items()} == {
        'quantize.embedding.weight': (8192, 256),
        'quantize.embedding.cluster_size': (8192,),
        'quantize.embedding.embed_avg': (8192, 256),
    }
    assert not any(code.requires_grad for code in codes.values())


def test_all_weights_are_loaded(tokenizer):
    found = tokenizer.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in golden_state('ema').items())


def test_codebook_of_another_size(released):
    state = golden_state('ema') | {'quantize.embedding.weight': torch.zeros(8192, 16)}
    save_state(released, state)
    message = r'embedding.weight has shape \(8192, 16\) instead of \(48, 16\)'
    with pytest.raises(ValueError, match=message):
        EMAVQGANTokenizer(checkpoint=released)
