import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import GOLDEN, ROOT, relative_error
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.runner import Runner

from mcbeit_mm.tokenizers import (
    GumbelVQGAN,
    GumbelVQGANTokenizer,
    GumbelVQGANTrainer,
    Tokenizer,
)
from mcbeit_mm.tokenizers.base import sha256_of_tensors
from mcbeit_mm.tokenizers.release import write_release

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
TINY = dict(
    ddconfig=dict(
        z_channels=8,
        resolution=16,
        ch=8,
        ch_mult=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[],
        num_groups=2,
    ),
    n_embed=16,
    embed_dim=4,
)


def sizes_of(golden):
    return {key: golden.sizes[key] for key in ('ddconfig', 'n_embed', 'embed_dim')}


def golden_state():
    arrays = {}
    for side in ('encoder', 'decoder'):
        arrays |= np.load(GOLDEN / f'tokenizer_gumbel_state_{side}.npz')
    return {name.removeprefix('state/'): torch.from_numpy(a) for name, a in arrays.items()}


@pytest.fixture
def gumbel(golden):
    return golden('tokenizer_gumbel')


@pytest.fixture
def released(tmp_path, gumbel):
    """The golden tokenizer as a released folder, wrapped as Lightning does."""
    folder = tmp_path / 'vqgan_gumbel_f8'
    folder.mkdir()
    params = sizes_of(gumbel) | dict(kl_weight=1e-8, lossconfig=dict(target='x.DummyLoss'))
    content = dict(model=dict(target='taming.models.vqgan.GumbelVQ', params=params))
    (folder / 'model.yaml').write_text(yaml.safe_dump(content))
    state = golden_state() | {'loss.discriminator.main.0.weight': torch.zeros(3)}
    checkpoint = {'epoch': 3, 'state_dict': state, 'callbacks': {Path: Path('x')}}
    torch.save(checkpoint, folder / 'last.ckpt')
    return folder


def test_golden_encoder(gumbel, released):
    tokenizer = GumbelVQGANTokenizer(checkpoint=released)
    images = gumbel['image_uint8'].permute(0, 3, 1, 2) / 255
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


def test_attention_follows_the_nominal_resolution():
    ddconfig = TINY['ddconfig'] | dict(attn_resolutions=[8])
    tokenizer = GumbelVQGANTokenizer(ddconfig, 16, 4)
    names = [name for name in tokenizer.state_dict() if '.attn.' in name]
    assert names and all('.down.1.' in name or '.up.1.' in name for name in names)
    assert tokenizer(torch.rand(1, 3, 12, 20)).shape == (1, 16, 6, 10)


def test_frozen(released):
    tokenizer = GumbelVQGANTokenizer(checkpoint=released)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.train() is tokenizer
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert not tokenizer(images).requires_grad
    assert not tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.long)).requires_grad


def test_fp32_under_autocast(released):
    tokenizer = GumbelVQGANTokenizer(checkpoint=released)
    images = torch.rand(1, 3, 16, 16)
    expected = tokenizer(images)
    with torch.autocast('cpu', torch.bfloat16):
        found = tokenizer(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


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
        GumbelVQGANTokenizer(**TINY)(images)


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
        GumbelVQGANTokenizer(**TINY).decode(tokens)


def test_upstream_folder_layout(gumbel, released):
    images = gumbel['image_uint8'].permute(0, 3, 1, 2) / 255
    expected = GumbelVQGANTokenizer(checkpoint=str(released))(images)
    (released / 'configs').mkdir()
    (released / 'checkpoints').mkdir()
    (released / 'model.yaml').rename(released / 'configs' / '2021-project.yaml')
    (released / 'configs' / '2021-lightning.yaml').write_text('trainer: {gpus: 8}')
    (released / 'last.ckpt').rename(released / 'checkpoints' / 'last.ckpt')
    assert torch.equal(GumbelVQGANTokenizer(checkpoint=released)(images), expected)


def test_weight_file(gumbel, released):
    images = gumbel['image_uint8'].permute(0, 3, 1, 2) / 255
    file = released / 'last.ckpt'
    tokenizer = GumbelVQGANTokenizer(**sizes_of(gumbel), checkpoint=file)
    assert relative_error(tokenizer(images), gumbel['logits']) <= 1e-5
    with pytest.raises(ValueError, match='ddconfig, n_embed, embed_dim'):
        GumbelVQGANTokenizer(checkpoint=file)


def test_agreeing_sizes_are_accepted_and_others_refused(gumbel, released):
    sizes = sizes_of(gumbel)
    partial = dict(ch_mult=tuple(sizes['ddconfig']['ch_mult']))
    GumbelVQGANTokenizer(ddconfig=partial, n_embed=sizes['n_embed'], checkpoint=released)
    with pytest.raises(ValueError, match=r'n_embed=8192 \(there 48\)'):
        GumbelVQGANTokenizer(n_embed=8192, checkpoint=released)
    with pytest.raises(ValueError, match=r'ddconfig\.ch=128 \(there 32\)'):
        GumbelVQGANTokenizer(ddconfig=dict(ch=128), checkpoint=released)


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


def save_state(folder, state):
    torch.save({'state_dict': state}, folder / 'last.ckpt')


@pytest.mark.parametrize(
    'prefix', ['encoder.conv_in', 'quant_conv', 'quantize.proj', 'quantize.embed', 'decoder.up.0']
)
def test_missing_weights(released, prefix):
    save_state(released, {k: v for k, v in golden_state().items() if not k.startswith(prefix)})
    with pytest.raises(ValueError, match=rf'{prefix}\S* is missing'):
        GumbelVQGANTokenizer(checkpoint=released)


def test_wrong_shape(released):
    save_state(released, golden_state() | {'quant_conv.bias': torch.zeros(7)})
    with pytest.raises(ValueError, match=r'quant_conv.bias has shape \(7,\) instead of \(16,\)'):
        GumbelVQGANTokenizer(checkpoint=released)


def test_without_decoder(gumbel, released):
    decoder = ('decoder.', 'post_quant_conv.')
    save_state(released, {k: v for k, v in golden_state().items() if not k.startswith(decoder)})
    tokenizer = GumbelVQGANTokenizer(checkpoint=released)
    assert relative_error(tokenizer(gumbel['x'] / 2 + 0.5), gumbel['logits']) <= 1e-5
    with pytest.raises(ValueError, match='no decoder weights'):
        tokenizer.decode(gumbel['indices'])


@pytest.mark.parametrize('change', [dict(nonsense=1), dict(double_z=True)])
def test_bad_ddconfig(change):
    with pytest.raises(ValueError, match='nonsense|double_z'):
        GumbelVQGANTokenizer(TINY['ddconfig'] | change, 16, 4)


def test_identity(released):
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
    code = f"""
import torch
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
torch.manual_seed(3)
print(GumbelVQGANTokenizer(**{TINY!r}).identity['sha256'])
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    torch.manual_seed(3)
    tokenizer = GumbelVQGANTokenizer(**TINY)
    assert tokenizer.identity['checkpoint'] is None
    assert run.stdout.split()[-1] == tokenizer.identity['sha256'], run.stderr
    other = copy.deepcopy(tokenizer)
    del other.__dict__['identity']
    other.quant_conv.bias[0] += 1e-3
    assert other.identity['sha256'] != tokenizer.identity['sha256']


def test_sha256_of_tensors_sees_names_types_and_shapes():
    a, b = torch.zeros(4), torch.ones(2, 3)
    reference = sha256_of_tensors({'a': a, 'b': b})
    assert sha256_of_tensors({'b': b, 'a': a.clone()}) == reference
    assert sha256_of_tensors({'a': a, 'b': b.t().contiguous().t()}) == reference
    for other in ({'a': b, 'b': a}, {'a': a.view(2, 2), 'b': b}, {'a': a.int(), 'b': b}):
        assert sha256_of_tensors(other) != reference


def pictures(count):
    """Two-coloured images split at a random column: few codes suffice."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(count, 2, 3, generator=generator)
    columns = torch.randint(4, 12, (count, 1, 1, 1), generator=generator)
    left = torch.arange(16).view(1, 1, 1, 16) < columns
    return torch.where(left, colours[:, 0, :, None, None], colours[:, 1, :, None, None]).expand(
        count, 3, 16, 16
    )


class Pictures(torch.utils.data.Dataset):
    def __init__(self):
        self.images = (255 * pictures(64)).byte()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'inputs': self.images[index], 'data_samples': index}


def error_of(tokenizer):
    images = pictures(64)
    return float((tokenizer.decode(tokenizer(images).argmax(dim=1)) - images).abs().mean())


@pytest.fixture
def run_training(tmp_path):
    def run(iters, work_dir='run', **kwargs):
        torch.manual_seed(0)
        trainer = GumbelVQGANTrainer(
            **TINY,
            warmup_iters=50,
            total_iters=150,
            data_preprocessor=dict(
                type='mmpretrain.SelfSupDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3
            ),
        )
        runner = Runner(
            model=trainer,
            work_dir=str(tmp_path / work_dir),
            train_dataloader=dict(
                batch_size=16,
                num_workers=0,
                dataset=Pictures(),
                sampler=dict(type='InfiniteSampler', shuffle=True),
                collate_fn=default_collate,
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=2e-3)),
            custom_hooks=[dict(type='ExportTokenizerHook')],
            log_level='WARNING',
            experiment_name=f'{tmp_path.name}_{work_dir}',
            **kwargs,
        )
        runner.train()
        return trainer, tmp_path / work_dir / 'tokenizer'

    return run


def test_training_improves_and_exports(run_training):
    _, before = run_training(1, 'before')
    trainer, folder = run_training(150, 'after')
    tokenizer = GumbelVQGANTokenizer(checkpoint=folder)
    assert error_of(tokenizer) < 0.6 * error_of(GumbelVQGANTokenizer(checkpoint=before))
    ids = tokenizer(pictures(64)).argmax(dim=1)
    assert ids.unique().numel() >= 4
    images = pictures(8)
    with torch.no_grad():
        x = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        vqgan = copy.deepcopy(trainer.vqgan).eval().to(memory_format=torch.channels_last)
        assert torch.equal(tokenizer(images), vqgan.encode(x))
    assert sorted(path.name for path in folder.iterdir()) == ['last.ckpt', 'model.yaml']
    state = torch.load(folder / 'last.ckpt', weights_only=True)['state_dict']
    assert state.keys() == GumbelVQGAN(**TINY).state_dict().keys()


def test_training_losses(run_training):
    trainer, _ = run_training(60)
    losses = trainer(pictures(8), mode='loss')
    assert {'rec', 'kl', 'psnr', 'temperature', 'codebook_usage', 'perplexity'} <= set(losses)
    expected = trainer.rec_weight * losses['rec'] + trainer.kl_weight * losses['kl']
    assert float(losses['loss']) == pytest.approx(float(expected), rel=1e-5)
    assert 0 < float(losses['codebook_usage']) <= 1
    assert 1 <= float(losses['perplexity']) <= TINY['n_embed'] + 1e-3
    losses['loss'].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.parameters())


def test_temperature_is_a_function_of_the_iteration():
    def trainer():
        return GumbelVQGANTrainer(**TINY, warmup_iters=10, total_iters=20, temperature=(1.0, 0.25))

    model = trainer()
    taus = []
    for iteration in (0, 10, 15, 20, 30):
        model.iteration.fill_(iteration)
        taus.append(model.tau())
    assert taus == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.25])
    resumed = trainer()
    resumed.load_state_dict(model.state_dict())
    assert resumed.tau() == model.tau()


def test_write_release_replaces_a_folder(tmp_path):
    torch.manual_seed(1)
    for _ in range(2):
        model = GumbelVQGAN(**TINY)
        write_release(tmp_path, model, TINY)
    assert torch.equal(
        GumbelVQGANTokenizer(checkpoint=tmp_path).quant_conv.weight, model.quant_conv.weight
    )


def test_demo_config():
    config = Config.fromfile(ROOT / 'configs' / 'demo' / 'tokenizer_gumbel-f8-256_demo.py')
    assert config.train_dataloader.dataset.data_root == 'data/demo/classification'
    assert config.model.n_embed == 256
    assert config.model.total_iters == config.train_cfg.max_iters
    assert any(hook.type == 'ExportTokenizerHook' for hook in config.custom_hooks)
