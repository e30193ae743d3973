"""Both VQGANs equal the goldens; sizes, geometry, release folders, files without a decoder."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_VQGAN, relative_error
from golden_tokenizers import golden_state, images_of, save_state, write_golden

from mcbeit_mm.tokenizers import (
    EMAVQGAN,
    EMAVQGANTokenizer,
    GumbelVQGAN,
    GumbelVQGANTokenizer,
)

BOTH = pytest.mark.parametrize('cls', [GumbelVQGANTokenizer, EMAVQGANTokenizer])


F8_8192 = dict(
    ddconfig=dict(
        double_z=False,
        z_channels=256,
        resolution=256,
        in_channels=3,
        out_ch=3,
        ch=128,
        ch_mult=[1, 1, 2, 4],
        num_res_blocks=2,
        attn_resolutions=[32],
        dropout=0.0,
    ),
    n_embed=8192,
    embed_dim=256,
)


@pytest.fixture
def released(tmp_path, golden):
    """Release folders of both kinds."""
    return {
        kind: write_golden(tmp_path / kind, golden(f'tokenizer_{kind}'), kind)
        for kind in ('gumbel', 'ema')
    }


@BOTH
@pytest.mark.parametrize('n_embed', [16, 24])
def test_any_vocabulary_size(cls, n_embed):
    config = TINY_VQGAN | dict(n_embed=n_embed)
    tokenizer = cls(**config)
    assert tokenizer(torch.rand(1, 3, 8, 12)).shape == (1, n_embed, 4, 6)
    assert tokenizer.decode(torch.full((1, 2, 2), n_embed - 1)).shape == (1, 3, 4, 4)
    assert cls.geometry(**config) == dict(vocab_size=n_embed, stride=2)


def test_invalid_ddconfig():
    with pytest.raises(ValueError, match='nonsense'):
        GumbelVQGANTokenizer(TINY_VQGAN['ddconfig'] | dict(nonsense=1), 16, 4)
    missing = {k: v for k, v in TINY_VQGAN['ddconfig'].items() if k != 'z_channels'}
    with pytest.raises(ValueError, match='Invalid ddconfig.*z_channels'):
        GumbelVQGANTokenizer(missing, 16, 4)
    with pytest.raises(ValueError, match='Invalid ddconfig'):
        GumbelVQGANTokenizer(TINY_VQGAN['ddconfig'] | dict(ch='8'), 16, 4)


def test_geometry_of_a_release_reads_no_weights(released):
    (released['gumbel'] / 'last.ckpt').write_bytes(b'')
    found = GumbelVQGANTokenizer.geometry(checkpoint=released['gumbel'])
    assert found == dict(vocab_size=48, stride=4)


def test_a_release_of_the_other_kind(released):
    with pytest.raises(ValueError, match="describes EMAVQ: use type='EMAVQGANTokenizer'"):
        GumbelVQGANTokenizer(checkpoint=released['ema'])
    for ask in (EMAVQGANTokenizer, EMAVQGANTokenizer.geometry):
        with pytest.raises(ValueError, match="GumbelVQ: use type='GumbelVQGANTokenizer'"):
            ask(checkpoint=released['gumbel'])


@pytest.mark.parametrize('kind', ['gumbel', 'ema'])
def test_without_decoder(golden, released, kind):
    arrays = golden(f'tokenizer_{kind}')
    state, decoder = golden_state(kind), ('decoder.', 'post_quant_conv.')
    save_state(released[kind], {k: v for k, v in state.items() if not k.startswith(decoder)})
    cls = dict(gumbel=GumbelVQGANTokenizer, ema=EMAVQGANTokenizer)[kind]
    tokenizer = cls(checkpoint=released[kind])
    expected = arrays['logits'] if kind == 'gumbel' else -arrays['distances']
    assert relative_error(tokenizer(images_of(arrays)).view_as(expected), expected) <= 1e-5
    with pytest.raises(ValueError, match='last.ckpt: no decoder weights'):
        tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.long))


def test_golden_gumbel_encoder(golden, released):
    gumbel = golden('tokenizer_gumbel')
    tokenizer = GumbelVQGANTokenizer(checkpoint=released['gumbel'])
    images = images_of(gumbel)
    assert relative_error(tokenizer(images), gumbel['logits']) <= 1e-5
    assert relative_error(tokenizer.normalize(images), gumbel['x']) <= 1e-6
    with torch.no_grad():
        assert relative_error(tokenizer.encode(gumbel['x']), gumbel['logits']) <= 1e-5
        assert relative_error(tokenizer.encode_latents(gumbel['x']), gumbel['pre_quant']) <= 1e-5
    assert torch.equal(tokenizer(images).argmax(dim=1), gumbel['indices'])


def test_golden_gumbel_decoder(golden, released):
    gumbel = golden('tokenizer_gumbel')
    tokenizer = GumbelVQGANTokenizer(checkpoint=released['gumbel'])
    ids = gumbel['dec_indices']
    with torch.no_grad():
        assert relative_error(tokenizer.decode_tokens(ids), gumbel['decoded']) <= 1e-5
        found = tokenizer.decode_latents(gumbel['dec_z_q'])
        assert relative_error(found, gumbel['decoded']) <= 1e-5
    expected = (gumbel['decoded'] / 2 + 0.5).clamp(0, 1)
    assert relative_error(tokenizer.decode(ids), expected) <= 1e-5
    one_hot = F.one_hot(ids, tokenizer.vocab_size).permute(0, 3, 1, 2).float()
    assert relative_error(tokenizer.decode(one_hot), expected) <= 1e-5
    assert torch.equal(tokenizer.decode(ids), tokenizer.decode(ids.int()))


def test_full_size_parameters():
    with torch.device('meta'):
        model = GumbelVQGAN(**F8_8192)
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    assert counts == {
        'encoder': 26_345_728,
        'decoder': 38_316_163,
        'quantize': 4_202_496,
        'quant_conv': 65_792,
        'post_quant_conv': 65_792,
    }
    assert sum(counts.values()) == 68_995_971
    assert len(model.state_dict()) == 301
    assert {'encoder.down.3.attn.1.proj_out.weight', 'decoder.up.3.attn.2.q.bias'} <= set(
        model.state_dict()
    )
    assert (model.vocab_size, model.stride) == (8192, 8)


@pytest.fixture
def ema(golden):
    return golden('tokenizer_ema')


@pytest.fixture
def ema_tokenizer(released):
    return EMAVQGANTokenizer(checkpoint=released['ema'])


def test_golden_ema_logits_are_minus_the_distances(ema, ema_tokenizer):
    with torch.no_grad():
        assert relative_error(ema_tokenizer.encode_latents(ema['x']), ema['pre_quant']) <= 1e-5
    logits = ema_tokenizer(images_of(ema)).flatten(2)
    assert relative_error(logits, -ema['distances']) <= 1e-5
    assert torch.equal(logits.argmax(dim=1), ema['indices'])


def test_argmax_of_the_authors_is_the_farthest_code(ema, ema_tokenizer):
    logits = ema_tokenizer(images_of(ema)).flatten(2)
    assert torch.equal(logits.argmin(dim=1), ema['indices_argmax'])
    assert not (ema['indices_argmax'] == ema['indices']).any()


def test_golden_ema_decoder(ema, ema_tokenizer):
    ids = ema['indices'].view(len(ema['x']), *ema['z_q'].shape[2:])
    with torch.no_grad():
        assert relative_error(ema_tokenizer.decode_tokens(ids), ema['reconstruction']) <= 1e-5
        found = ema_tokenizer.decode_latents(ema['z_q'])
    assert relative_error(found, ema['reconstruction']) <= 1e-5
    expected = (ema['reconstruction'] / 2 + 0.5).clamp(0, 1)
    assert relative_error(ema_tokenizer.decode(ids), expected) <= 1e-5


def test_ema_logits_by_their_definition():
    torch.manual_seed(1)
    model = EMAVQGAN(**TINY_VQGAN)
    latents = torch.randn(2, TINY_VQGAN['embed_dim'], 3, 5)
    difference = latents[:, None] - model.codebook[None, :, :, None, None]
    assert relative_error(model.token_logits(latents), -difference.square().sum(dim=2)) <= 1e-5


def test_ema_codes_are_not_trainable():
    with torch.device('meta'):
        model = EMAVQGAN(TINY_VQGAN['ddconfig'], n_embed=8192, embed_dim=256)
    codes = {k: v for k, v in model.named_parameters() if k.startswith('quantize.')}
    assert {name: tuple(code.shape) for name, code in codes.items()} == {
        'quantize.embedding.weight': (8192, 256),
        'quantize.embedding.cluster_size': (8192,),
        'quantize.embedding.embed_avg': (8192, 256),
    }
    assert not any(code.requires_grad for code in codes.values())


def test_all_ema_weights_are_loaded(ema_tokenizer):
    found = ema_tokenizer.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in golden_state('ema').items())


def test_ema_codebook_of_another_size(released):
    state = golden_state('ema') | {'quantize.embedding.weight': torch.zeros(8192, 16)}
    save_state(released['ema'], state)
    message = r'embedding.weight.*\[8192, 16\].*\[48, 16\]'
    with pytest.raises(ValueError, match=message):
        EMAVQGANTokenizer(checkpoint=released['ema'])
