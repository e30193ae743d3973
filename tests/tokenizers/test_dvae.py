import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from golden_tokenizers import images_of

from mcbeit_mm.tokenizers.dvae import DiscreteVAETokenizer

TINY = dict(num_tokens=16, codebook_dim=6, num_layers=2, hidden_dim=8)


@pytest.fixture
def dvae(golden):
    return golden('tokenizer_dvae')


@pytest.fixture
def sizes(dvae):
    return {k: dvae.sizes[k] for k in ('num_tokens', 'codebook_dim', 'num_layers', 'hidden_dim')}


@pytest.fixture
def released(tmp_path, dvae):
    folder = tmp_path / 'dvae'
    folder.mkdir()
    torch.save({'weights': dvae.group('state'), 'epoch': 1}, folder / 'pytorch_model.bin')
    return folder


def test_golden(dvae, sizes, released):
    tokenizer = DiscreteVAETokenizer(**sizes, checkpoint=released)
    logits = tokenizer(images_of(dvae))
    assert relative_error(logits, dvae['logits']) <= 1e-5
    assert torch.equal(logits.argmax(dim=1), dvae['indices'])
    assert relative_error(tokenizer.normalize(images_of(dvae)), dvae['x']) <= 1e-6
    ids = dvae['dec_indices'].view(dvae['indices'].shape)
    with torch.no_grad():
        assert relative_error(tokenizer.decode_tokens(ids), dvae['decoded']) <= 1e-5
    expected = (dvae['decoded'] / 2 + 0.5).clamp(0, 1)
    assert relative_error(tokenizer.decode(ids), expected) <= 1e-5
    one_hot = F.one_hot(ids, sizes['num_tokens']).permute(0, 3, 1, 2).float()
    assert relative_error(tokenizer.decode(one_hot), expected) <= 1e-5


def test_full_size_parameters():
    with torch.device('meta'):
        model = DiscreteVAETokenizer()
    counts = {n: sum(p.numel() for p in c.parameters()) for n, c in model.named_children()}
    assert counts == {'encoder': 7_953_408, 'codebook': 4_194_304, 'decoder': 7_933_699}
    assert (model.vocab_size, model.stride) == (8192, 8)
    assert DiscreteVAETokenizer.geometry() == dict(vocab_size=8192, stride=8)


def test_the_stride_follows_the_layers():
    tokenizer = DiscreteVAETokenizer(**TINY)
    assert tokenizer(torch.rand(1, 3, 8, 12)).shape == (1, 16, 2, 3)
    assert tokenizer.decode(torch.zeros(1, 2, 3, dtype=torch.long)).shape == (1, 3, 8, 12)
    assert DiscreteVAETokenizer.geometry(**TINY) == dict(vocab_size=16, stride=4)


@pytest.mark.parametrize('form', ['file', 'bare', 'safetensors'])
def test_other_forms_of_the_file(dvae, sizes, released, form):
    file = released / 'pytorch_model.bin'
    if form == 'bare':
        torch.save(dvae.group('state'), file)
    elif form == 'safetensors':
        file = released / 'x.safetensors'
        pytest.importorskip('safetensors.torch').save_file(dvae.group('state'), file)
    tokenizer = DiscreteVAETokenizer(**sizes, checkpoint=file)
    assert relative_error(tokenizer(images_of(dvae)), dvae['logits']) <= 1e-5
    assert tokenizer.identity['checkpoint'] == str(file)


def test_without_decoder(dvae, sizes, released):
    state = {k: v for k, v in dvae.group('state').items() if k.startswith('encoder.')}
    torch.save({'weights': state}, released / 'pytorch_model.bin')
    tokenizer = DiscreteVAETokenizer(**sizes, checkpoint=released)
    assert relative_error(tokenizer(images_of(dvae)), dvae['logits']) <= 1e-5
    with pytest.raises(ValueError, match='pytorch_model.bin: no decoder weights'):
        tokenizer.decode(dvae['indices'])


def test_weights_that_do_not_fit(dvae, sizes, released):
    message = r'encoder.6.weight.*\[48, 16, 1, 1\].*\[64, 16, 1, 1\].*sizes'
    with pytest.raises(ValueError, match=message):
        DiscreteVAETokenizer(**sizes | dict(num_tokens=64), checkpoint=released)
    state = dvae.group('state')
    del state['codebook.weight']
    torch.save({'weights': state}, released / 'pytorch_model.bin')
    with pytest.raises(ValueError, match='Missing key.*codebook.weight'):
        DiscreteVAETokenizer(**sizes, checkpoint=released)


def test_missing_files(tmp_path):
    for path, got in ((tmp_path, 'has no pytorch_model.bin'), (tmp_path / 'nowhere', 'nowhere')):
        with pytest.raises(FileNotFoundError, match=f'{got}.*: expected pytorch_model.bin'):
            DiscreteVAETokenizer(checkpoint=path)
        with pytest.raises(FileNotFoundError, match=got):
            DiscreteVAETokenizer.geometry(checkpoint=path)
