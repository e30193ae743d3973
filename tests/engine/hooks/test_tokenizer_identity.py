"""Only a resumed run requires the same tokenizer."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from mcbeit_mm.engine.hooks import TokenizerIdentityHook
from mcbeit_mm.errors import SetupError


def runner_with(sha256: str, resume: bool):
    model = nn.Module()
    identity = dict(type='T', checkpoint='/here/tokenizer', sha256=sha256)
    model.tokenizer = SimpleNamespace(identity=identity)
    return SimpleNamespace(model=model, _resume=resume, logger=Mock())


def saved(sha256: str) -> dict:
    checkpoint = dict(meta={})
    TokenizerIdentityHook().before_save_checkpoint(runner_with(sha256, False), checkpoint)
    assert checkpoint['meta']['tokenizer']['sha256'] == sha256
    return checkpoint


@pytest.mark.parametrize('resume', [False, True])
def test_same_weights_pass_without_a_message(resume):
    runner = runner_with('a' * 64, resume)
    TokenizerIdentityHook().after_load_checkpoint(runner, saved('a' * 64))
    TokenizerIdentityHook().after_load_checkpoint(runner, dict(meta={}))  # an older checkpoint
    runner.logger.warning.assert_not_called()


def test_other_weights_stop_a_resumed_run():
    with pytest.raises(SetupError, match='trained with tokenizer .*aaaa.*this run uses .*bbbb'):
        TokenizerIdentityHook().after_load_checkpoint(runner_with('b' * 64, True), saved('a' * 64))


def test_other_weights_only_warn_without_resume():
    runner = runner_with('b' * 64, False)
    TokenizerIdentityHook().after_load_checkpoint(runner, saved('a' * 64))
    runner.logger.warning.assert_called_once()


def test_the_weights_loaded_are_the_weights_recorded(tmp_path):
    from tiny_models import TOKENIZER, tiny

    from mcbeit_mm.fileio.pins import sha256_of

    file = tmp_path / 'tokenizer.pth'
    torch.save(dict(state_dict=tiny().tokenizer.state_dict()), file)
    loaded = sha256_of(file)
    model = tiny(target_generator=TOKENIZER | dict(checkpoint=str(file)))
    runner = SimpleNamespace(model=model)
    hook, checkpoint = TokenizerIdentityHook(), dict(meta={})
    hook.before_run(runner)
    file.write_bytes(b'another file by now')
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint['meta']['tokenizer']['sha256'] == loaded
