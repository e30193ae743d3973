import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from golden_tokenizers import images_of, write_golden

from mcbeit_mm.tokenizers import GumbelVQGAN, GumbelVQGANTokenizer

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
def gumbel(golden):
    return golden('tokenizer_gumbel')


@pytest.fixture
def released(tmp_path, gumbel):
    return write_golden(tmp_path / 'vqgan_gumbel_f8', gumbel, 'gumbel')


def test_golden_encoder(gumbel, released):
    tokenizer = GumbelVQGANTokenizer(checkpoint=released)
    images = images_of(gumbel)
    assert relative_error(tokenizer(images), gumbel['logits']) <= 1e-5
    assert relative_error(tokenizer.normalize(images), gumbel['x']) <= 1e-6
    with torch.no_grad():
        assert relative_error(tokenizer.encode(gumbel['x']), gumbel['logits']) <= 1e-5
        assert relative_error(tokenizer.encode_latents(gumbel['x']), gumbel['pre_quant']) <= 1e-5
    assert torch.equal(tokenizer(images).argmax(dim=1), gumbel['indices'])


def test_golden_decoder(gumbel, released):
    tokenizer = GumbelVQGANTokenizer(checkpoint=released)
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
