"""Real runs through `run.train` and `run.test`: loss, log, checkpoints, resume, mistakes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from fast_runner import speed_up_runner
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from tiny_train import write_tiny_run

from mcbeit_mm.config.launch import one_line_errors
from mcbeit_mm.engine import run
from mcbeit_mm.errors import SetupError
from mcbeit_mm.weights.reading import read_checkpoint

CLASSIFIER = 'mcbeit_vit-tiny-p16_1xb64-bf16-coslr-20e_imagefolder-128px'
PRETRAIN = str(ROOT / 'configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py')


@pytest.fixture(scope='module', autouse=True)
def _fast_runner():
    with pytest.MonkeyPatch.context() as monkeypatch:
        speed_up_runner(monkeypatch)
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp('train'))


def train(folder: Path, work: str, *options: str, **kwargs) -> Path:
    options = ['train_dataloader.num_workers=0', *options]
    run.train(str(folder / 'tiny.py'), str(folder / work), cfg_options=options, **kwargs)
    return folder / work


def scalars(work: Path) -> list[dict]:
    newest = max(work.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(folder):
    return train(folder, 'full')


def test_loss_falls_and_everything_is_logged(finished):
    log = scalars(finished)
    assert len(log) == 16  # 4 epochs of 32 / 8
    kl = [entry['kl'] for entry in log]
    assert np.mean(kl[-4:]) < 0.5 * np.mean(kl[:2])
    wanted = {'loss', 'kl', 'target_entropy', 'mlm_acc', 'grad_norm', 'lr', 'images_per_s', 'time'}
    assert wanted <= set(log[-1])
    for entry in log:
        assert entry['kl'] == pytest.approx(
            entry['loss'] - entry['target_entropy'], abs=1e-3
        )  # the log averages over a window
    shares = [entry['tokenizer_share'] for entry in log if 'tokenizer_share' in entry]
    assert shares and all(0 < share < 1 for share in shares)


def test_text_log_has_the_eta(finished):
    text = max(finished.glob('*/*.log')).read_text()
    lines = [line for line in text.splitlines() if 'Epoch(train)' in line]
    for word in ('lr:', 'eta:', 'grad_norm:', 'loss:', 'kl:', 'mlm_acc:', 'images_per_s:'):
        assert word in lines[-1]


def test_checkpoint_names_the_tokenizer_without_holding_it(finished, folder):
    checkpoint = torch.load(finished / 'epoch_4.pth', weights_only=False)  # our own file
    assert not [k for k in checkpoint['state_dict'] if not k.startswith(('backbone.', 'head.'))]
    identity = checkpoint['meta']['tokenizer']
    assert identity['checkpoint'] == str(folder / 'tokenizer.pth')
    assert len(identity['sha256']) == 64
    safe = read_checkpoint(finished / 'epoch_4.pth')
    assert safe['state_dict'].keys() == checkpoint['state_dict'].keys()


def test_resume_continues_the_schedule_with_a_moved_tokenizer(folder, finished):
    moved = folder / 'moved.pth'
    moved.write_bytes((folder / 'tokenizer.pth').read_bytes())
    option = f'model.target_generator.checkpoint={moved}'
    log = scalars(train(folder, 'resumed', option, resume=str(finished / 'epoch_2.pth')))
    full = {entry['step']: entry['lr'] for entry in scalars(finished)}
    assert [entry['step'] for entry in log] == list(range(9, 17))
    assert [entry['lr'] for entry in log] == pytest.approx([full[s] for s in range(9, 17)])


def test_resume_auto_starts_or_finds_the_newest(folder, finished, capsys):
    work = train(folder, 'auto', 'train_cfg.max_epochs=1', 'param_scheduler.0.end=1', resume='auto')
    assert 'starting from scratch' in capsys.readouterr().err
    assert len(scalars(work)) == 4
    stamps = set(finished.iterdir())
    train(folder, 'full', resume='auto')  # already finished
    assert not [f for f in set(finished.iterdir()) - stamps if f.suffix == '.pth']


def test_resume_with_another_tokenizer_is_refused(folder, finished):
    other = f'model.target_generator.checkpoint={folder / "other.pth"}'
    with pytest.raises(SetupError, match='the checkpoint was trained with tokenizer'):
        train(folder, 'refused', other, resume=str(finished / 'epoch_2.pth'))


def test_compiled_blocks_may_recompile(folder, monkeypatch):
    """The limit is raised before the model is built, which is left out here."""
    monkeypatch.setattr(torch._dynamo.config, 'recompile_limit', 1)
    monkeypatch.setattr(run.Runner, 'from_cfg', lambda cfg: SimpleNamespace(train=lambda: None))
    train(folder, 'compiled', 'model.backbone.compile_blocks=True')
    assert torch._dynamo.config.recompile_limit == 4 * 2  # blocks


def test_check_writes_nothing(folder, capsys):
    work = train(folder, 'checked', check=True, precision='bf16', auto_scale_lr=True)
    assert not work.exists()
    assert 'Check passed' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, text',
    [
        (dict(config='configs/nothing.py'), 'no config file configs/nothing.py'),
        (dict(cfg_options=['model.hed=1']), 'did you mean head'),
        (dict(precision='fp32'), 'set MCBEIT_DATA'),
        (dict(resume='missing.pth'), 'no checkpoint missing.pth'),
    ],
)
def test_mistakes_are_set_up_errors(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=text):
        run.train(**dict(config=PRETRAIN) | arguments)


def test_a_missing_tokenizer(folder):
    option = f'model.target_generator.checkpoint={folder / "nowhere"}'
    with pytest.raises(SetupError, match='nowhere'):
        train(folder, 'work', option)


def test_a_key_that_only_its_class_refuses_is_one_line(folder, capsys):
    """The optimizer is built when training starts."""
    with pytest.raises(SystemExit) as stop, one_line_errors(SetupError):
        train(folder, 'wrong', 'optim_wrapper.optimizer.learning_rate=1')
    assert stop.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith('error: ') and "keyword argument 'learning_rate'" in last


# --- testing ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A tiny classifier's config, untrained weights, and images of three classes."""
    folder = tmp_path_factory.mktemp('test')
    for name in 'abc':
        (folder / 'val' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (40, 40), (i, 80, 160)).save(folder / f'val/{name}/{i}.png')
    base = (
        ROOT
        / 'configs/classification/mcbeit_vit-tiny-p16_1xb64-bf16-coslr-20e_imagefolder-128px.py'
    )
    arch = dict(_delete_=True, embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16)
    (folder / 'tiny.py').write_text(
        f'_base_ = {str(base)!r}\n'
        f'model = dict(backbone=dict(arch={arch}, init_cfg=None),\n'
        '    head=dict(in_channels=16, num_classes=3), data_preprocessor=dict(num_classes=3))\n'
        f'val_dataloader = dict(num_workers=0, dataset=dict(data_root={str(folder)!r}))\n'
        'test_dataloader = val_dataloader\n'
    )
    init_default_scope('mmpretrain')
    state = MODELS.build(Config.fromfile(folder / 'tiny.py').model).state_dict()
    torch.save(dict(state_dict=state), folder / 'weights.pth')
    del state['head.fc.weight']
    torch.save(dict(state_dict=state), folder / 'headless.pth')
    return folder


def test_metrics_and_pictures(classifier, tmp_path):
    metrics = run.test(
        str(classifier / 'tiny.py'),
        str(classifier / 'weights.pth'),
        work_dir=str(tmp_path / 'work'),
        show_dir=str(tmp_path / 'pictures'),
    )
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 6


def test_a_checkpoint_without_head_is_refused(classifier, tmp_path):
    with pytest.raises(SetupError, match='head.fc.weight'):
        run.test(
            str(classifier / 'tiny.py'), str(classifier / 'headless.pth'), work_dir=str(tmp_path)
        )


def test_a_config_without_test_set_is_refused():
    with pytest.raises(SetupError, match='has no test set'):
        run.test(PRETRAIN, 'x.pth')
