"""VQ-KD: the same tokens as mmpretrain, names in the public files, invalid files."""

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.selfsup import VQKD

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.tokenizers.vqkd import VQKDTokenizer

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
TINY = dict(arch=ARCH, img_size=32, patch_size=8, n_embed=24, embed_dim=4)


def jitter(module):
    """Perturb all weights but the codes: zeros and ones of a fresh network hide wrong names."""
    for name, parameter in module.named_parameters():
        if 'embedding' not in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def official_encoder():
    """Build MCBEiTViT, whose weights have the official names."""
    encoder = MCBEiTViT(
        ARCH, img_size=32, patch_size=8, layer_scale_init_value=0.0, rel_pos='none', abs_pos=True,
        out_type='featmap',
    )  # fmt: skip
    return jitter(encoder).eval()


def official_file(encoder, path):
    """Save a file like BEiT v2: `model` with fc_norm, a decoder and a teacher."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        name = name.replace('norm.', 'fc_norm.') if name.startswith('norm.') else name
        state[f'encoder.{name}'] = tensor
    state |= {
        'encode_task_layer.0.weight': torch.randn(16, 16),
        'encode_task_layer.0.bias': torch.randn(16),
        'encode_task_layer.2.weight': torch.randn(4, 16),
        'encode_task_layer.2.bias': torch.randn(4),
        'quantize.embedding.weight': F.normalize(torch.randn(24, 4), dim=-1),
        'quantize.embedding.initted': torch.ones(1),
        'quantize.cluster_size': torch.rand(24),
        'decoder.blocks.0.norm1.weight': torch.ones(16),
        'decode_task_layer.0.weight': torch.ones(16, 16),
        'scaling_layer.shift': torch.zeros(1, 3, 1, 1),
        'teacher_model.visual.proj': torch.ones(16, 4),
    }
    torch.save({'model': state, 'epoch': 99}, path)
    return state


@pytest.mark.parametrize('size', [32, 48])  # 48: resized position embeddings
def test_best_code_is_mmpretrains_token(size):
    tokenizer = VQKDTokenizer(**TINY)
    jitter(tokenizer.vqkd)
    images = torch.rand(8, 3, size, size)
    logits = tokenizer(images)
    assert logits.shape == (8, 24, size // 8, size // 8) and logits.dtype == torch.float32
    assert -1 <= logits.min() < -0.5 and 0.5 < logits.max() <= 1 + 1e-6
    # BEiT v2's normalization in mmpretrain: second_mean = second_std = 127.5 of 255.
    expected = tokenizer.vqkd.get_tokens((images * 255 - 127.5) / 127.5)['token']
    assert torch.equal(logits.argmax(dim=1).flatten(1), expected)
    assert len(expected.unique()) > 4


def test_images_need_not_be_square():
    tokenizer = jitter(VQKDTokenizer(**TINY))
    assert tokenizer(torch.rand(2, 3, 32, 48)).shape == (2, 24, 4, 6)


def test_official_file_against_another_implementation(tmp_path):
    encoder = official_encoder()
    weights = official_file(encoder, tmp_path / 'vqkd.pth')
    tokenizer = VQKDTokenizer(**TINY, checkpoint=str(tmp_path / 'vqkd.pth'))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        x = encoder(2 * images - 1)[0].flatten(2).transpose(1, 2)
    layer = 'encode_task_layer'
    x = torch.tanh(F.linear(x, weights[f'{layer}.0.weight'], weights[f'{layer}.0.bias']))
    x = F.linear(x, weights[f'{layer}.2.weight'], weights[f'{layer}.2.bias'])
    codes = weights['quantize.embedding.weight']
    expected = F.cosine_similarity(x.unsqueeze(2), codes, dim=-1)
    got = tokenizer(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert tokenizer.identity['sha256'] and 'vqkd.pth' in tokenizer.identity['checkpoint']


def test_openmmlab_file(tmp_path):
    source = jitter(VQKDTokenizer(**TINY))
    state = source.vqkd.state_dict()
    for counter in ('quantize.cluster_size', 'quantize.embedding.initted'):
        state.pop(counter)
    torch.save({'state_dict': state}, tmp_path / 'vqkd_encoder.pth')
    copy = VQKDTokenizer(**TINY, checkpoint=tmp_path / 'vqkd_encoder.pth')
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(copy(images), source(images))


def test_defaults_are_those_of_the_public_model():
    assert VQKDTokenizer.geometry() == dict(vocab_size=8192, stride=16)
    with torch.device('meta'):
        network = VQKDTokenizer().vqkd
    assert isinstance(network, VQKD)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes['quantize.embedding.weight'] == (8192, 32)
    assert shapes['encoder.pos_embed'] == (1, 197, 768)
    assert shapes['encode_task_layer.2.weight'] == (32, 768)
    assert shapes['encoder.ln1.weight'] == (768,)
    assert shapes['encoder.layers.11.attn.q_bias'] == (768,)
    assert not [name for name in shapes if 'gamma' in name or 'relative' in name]


def test_geometry_agrees_with_what_is_built():
    tokenizer = VQKDTokenizer(**TINY)
    built = dict(vocab_size=tokenizer.vocab_size, stride=tokenizer.stride)
    assert VQKDTokenizer.geometry(**TINY) == built == dict(vocab_size=24, stride=8)


def test_wrong_files_name_what_is_wrong(tmp_path):
    file = tmp_path / 'vqkd.pth'
    weights = official_file(official_encoder(), file)
    with pytest.raises(ValueError, match='vqkd.pth: .*VQKDTokenizer') as error:
        VQKDTokenizer(**(TINY | dict(n_embed=25)), checkpoint=file)
    assert 'size mismatch for vqkd.quantize.embedding.weight' in str(error.value)
    missing = {k: v for k, v in weights.items() if k != 'encoder.blocks.1.attn.q_bias'}
    torch.save({'model': missing}, file)
    with pytest.raises(ValueError, match='Missing key.*encoder.layers.1.attn.q_bias'):
        VQKDTokenizer(**TINY, checkpoint=file)
    for codes, message in (
        (torch.zeros(24, 4), 'from 0 to 0'),
        (torch.full((24, 4), torch.nan), 'nan'),
    ):
        torch.save({'model': weights | {'quantize.embedding.weight': codes}}, file)
        with pytest.raises(ValueError, match=f'codes have lengths .*{message}'):
            VQKDTokenizer(**TINY, checkpoint=file)
    for build in (VQKDTokenizer, VQKDTokenizer.geometry):
        with pytest.raises(FileNotFoundError, match='nowhere.pth'):
            build(**TINY, checkpoint=tmp_path / 'nowhere.pth')


def test_it_cannot_decode():
    with pytest.raises(ValueError, match='not pixels'):
        VQKDTokenizer(**TINY).decode(torch.zeros(1, 4, 4, dtype=torch.long))
