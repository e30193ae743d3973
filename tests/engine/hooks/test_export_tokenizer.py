import logging
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY_VQGAN

from mcbeit_mm.engine.hooks import ExportTokenizerHook
from mcbeit_mm.tokenizers import (
    EMAVQGANTokenizer,
    EMAVQGANTrainer,
    GumbelVQGANTokenizer,
    GumbelVQGANTrainer,
)

BOTH = pytest.mark.parametrize(
    'trainer, tokenizer, target',
    [
        (GumbelVQGANTrainer, GumbelVQGANTokenizer, 'taming.models.vqgan.GumbelVQ'),
        (EMAVQGANTrainer, EMAVQGANTokenizer, 'taming.models.vqgan.EMAVQ'),
    ],
)


def build(trainer, warmup_iters=0):
    return trainer(**TINY_VQGAN, warmup_iters=warmup_iters, total_iters=10)


def runner_of(model, folder, rank=0):
    return SimpleNamespace(
        model=model, work_dir=str(folder), rank=rank, logger=logging.getLogger('test')
    )


@BOTH
def test_the_folder_gives_the_same_logits(tmp_path, trainer, tokenizer, target):
    model = build(trainer).eval()
    images = torch.rand(4, 3, 16, 16)
    ExportTokenizerHook().after_train(runner_of(model, tmp_path))
    loaded = tokenizer(checkpoint=tmp_path / 'tokenizer')
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-5, atol=1e-5)
        ids = model(images).argmax(dim=1)
        reconstruction = model.vqgan.decode_tokens(ids)
    expected = ((reconstruction + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(loaded.decode(ids), expected, rtol=1e-5, atol=1e-5)
    content = yaml.safe_load((tmp_path / 'tokenizer' / 'model.yaml').read_text())
    assert content['model']['target'] == target


def test_validation_writes_once_there_are_codes(tmp_path):
    model, folder = build(EMAVQGANTrainer, warmup_iters=2), tmp_path / 'tokenizer'
    hook, runner = ExportTokenizerHook(), runner_of(model, tmp_path)
    hook.before_train(runner)
    hook.after_val_epoch(runner, metrics={})
    assert not folder.exists()
    hook.after_train(runner)  # too early: nothing to write
    assert not folder.exists()
    hook.before_train(runner)
    model.placed.fill_(True)
    hook.after_val_epoch(runner, metrics={})
    weights = EMAVQGANTokenizer(checkpoint=folder).quant_conv.weight
    assert torch.equal(weights, model.vqgan.quant_conv.weight)
    with torch.no_grad():
        model.vqgan.quant_conv.weight += 1
    hook.after_train(runner)
    weights = EMAVQGANTokenizer(checkpoint=folder).quant_conv.weight
    assert torch.equal(weights, model.vqgan.quant_conv.weight)


@pytest.mark.parametrize('rank, trained', [(0, False), (1, True)])
def test_validation_alone_and_other_ranks_write_nothing(tmp_path, rank, trained):
    runner, hook = runner_of(build(EMAVQGANTrainer), tmp_path, rank), ExportTokenizerHook()
    if trained:
        hook.before_train(runner)
    hook.after_val_epoch(runner, metrics={})
    if trained:
        hook.after_train(runner)
    assert not list(tmp_path.iterdir())
