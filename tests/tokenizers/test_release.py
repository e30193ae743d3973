import pytest
import torch
from conftest import TINY_VQGAN, relative_error
from golden_tokenizers import golden_state, images_of, save_state, sizes_of, write_golden

from mcbeit_mm.tokenizers import GumbelVQGAN, GumbelVQGANTokenizer
from mcbeit_mm.tokenizers.release import write_release


@pytest.fixture
def gumbel(golden):
    return golden('tokenizer_gumbel')


@pytest.fixture
def released(tmp_path, gumbel):
    return write_golden(tmp_path / 'vqgan_gumbel_f8', gumbel, 'gumbel')


@pytest.mark.parametrize('yaml', ['model.yaml', '2021-project.yaml'])
def test_upstream_folder_layout(gumbel, released, yaml):
    images = images_of(gumbel)
    expected = GumbelVQGANTokenizer(checkpoint=str(released))(images)
    (released / 'configs').mkdir()
    (released / 'checkpoints').mkdir()
    (released / 'model.yaml').rename(released / 'configs' / yaml)
    (released / 'configs' / '2021-lightning.yaml').write_text('trainer: {gpus: 8}')
    (released / 'last.ckpt').rename(released / 'checkpoints' / 'last.ckpt')
    assert torch.equal(GumbelVQGANTokenizer(checkpoint=released)(images), expected)


def test_weight_file(gumbel, released):
    images = images_of(gumbel)
    file = released / 'last.ckpt'
    tokenizer = GumbelVQGANTokenizer(**sizes_of(gumbel), checkpoint=file)
    assert relative_error(tokenizer(images), gumbel['logits']) <= 1e-5
    with pytest.raises(ValueError, match='ddconfig, n_embed, embed_dim'):
        GumbelVQGANTokenizer(checkpoint=file)


def test_agreeing_sizes_are_accepted_and_others_refused(gumbel, released):
    sizes = sizes_of(gumbel)
    ddconfig = dict(sizes['ddconfig'], ch_mult=tuple(sizes['ddconfig']['ch_mult']))
    GumbelVQGANTokenizer(ddconfig=ddconfig, n_embed=sizes['n_embed'], checkpoint=released)
    with pytest.raises(ValueError, match='n_embed contradict .*: omit'):
        GumbelVQGANTokenizer(n_embed=8192, checkpoint=released)
    with pytest.raises(ValueError, match='ddconfig contradict .*: omit'):
        GumbelVQGANTokenizer(ddconfig=ddconfig | dict(ch=128), checkpoint=released)


def test_no_sizes_and_no_checkpoint():
    with pytest.raises(ValueError, match='ddconfig, n_embed, embed_dim not given'):
        GumbelVQGANTokenizer()


@pytest.mark.parametrize('lacks', ['model.yaml', 'last.ckpt'])
def test_incomplete_folder(released, lacks):
    (released / lacks).unlink()
    with pytest.raises(FileNotFoundError, match=rf'has no {lacks}.*configs/tokenizer'):
        GumbelVQGANTokenizer(checkpoint=released)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match='model.yaml and last.ckpt.*configs/tokenizer'):
        GumbelVQGANTokenizer(checkpoint=tmp_path / 'nowhere')


@pytest.mark.parametrize(
    'text', ['a: [', 'model: {}', '- 1', 'model: !!python/object/apply:os.system ["true"]']
)
def test_bad_yaml(released, text):
    (released / 'model.yaml').write_text(text)
    with pytest.raises(ValueError, match='no model.params with ddconfig'):
        GumbelVQGANTokenizer(checkpoint=released)


def test_aliases_that_nest_without_end_are_refused(released):
    lines = ['model:', '  params:', '    n_embed: 8', '    embed_dim: 8', '    ddconfig:']
    lines += ['      a0: &a0 [1, 1]']
    lines += [f'      a{i}: &a{i} [*a{i - 1}, *a{i - 1}]' for i in range(1, 60)]
    (released / 'model.yaml').write_text('\n'.join(lines))
    with pytest.raises(ValueError, match='a1 is neither a number nor a list of numbers'):
        GumbelVQGANTokenizer(checkpoint=released)


@pytest.mark.parametrize(
    'prefix', ['encoder.conv_in', 'quant_conv', 'quantize.proj', 'quantize.embed', 'decoder.up.0']
)
def test_missing_weights(released, prefix):
    state = golden_state('gumbel')
    save_state(released, {k: v for k, v in state.items() if not k.startswith(prefix)})
    with pytest.raises(ValueError, match=rf'Missing key.*"{prefix}\S*"'):
        GumbelVQGANTokenizer(checkpoint=released)


def test_wrong_shape(released):
    save_state(released, golden_state('gumbel') | {'quant_conv.bias': torch.zeros(7)})
    with pytest.raises(ValueError, match=r'quant_conv.bias.*\[7\].*\[16\]'):
        GumbelVQGANTokenizer(checkpoint=released)


def test_write_release_replaces_a_folder(tmp_path):
    torch.manual_seed(1)
    for _ in range(2):
        model = GumbelVQGAN(**TINY_VQGAN)
        write_release(tmp_path, model, TINY_VQGAN)
    assert torch.equal(
        GumbelVQGANTokenizer(checkpoint=tmp_path).quant_conv.weight, model.quant_conv.weight
    )
