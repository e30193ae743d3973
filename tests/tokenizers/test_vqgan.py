"""What both VQGANs share: sizes, geometry, release folders, files without a decoder."""

import pytest
import torch
from conftest import TINY_VQGAN, relative_error
from golden_tokenizers import golden_state, images_of, save_state, write_golden

from mcbeit_mm.tokenizers import EMAVQGANTokenizer, GumbelVQGANTokenizer

BOTH = pytest.mark.parametrize('cls', [GumbelVQGANTokenizer, EMAVQGANTokenizer])


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
