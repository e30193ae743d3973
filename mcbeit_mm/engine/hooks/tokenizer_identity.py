"""Record which tokenizer made the targets, and refuse to resume with another one."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...errors import SetupError
from ...layers.model_wrappers import unwrap


@HOOKS.register_module()
class TokenizerIdentityHook(Hook):
    """Keeps meta['tokenizer'] = dict(type, checkpoint, sha256) in every checkpoint.

    Resuming with other tokenizer weights raises ValueError: half a run on other targets is no run
    of either. A file that only moved has the same sha256 and passes. Loading weights without
    resuming (`load_from`) just warns.
    """

    def before_run(self, runner: Runner) -> None:
        """Hash the weights now: the file may be another one by the first checkpoint."""
        _identity(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write the identity."""
        checkpoint['meta']['tokenizer'] = _identity(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the identity."""
        current = _identity(runner)
        saved = checkpoint.get('meta', {}).get('tokenizer')
        if saved is None or saved['sha256'] == current['sha256']:
            return
        message = (
            f'the checkpoint was trained with tokenizer {saved["checkpoint"]} '
            f'(sha256 {saved["sha256"][:12]}), '
            f'this run has {current["checkpoint"]} (sha256 {current["sha256"][:12]})'
        )
        if runner._resume:
            raise SetupError(
                f'{message}: set model.target_generator.checkpoint to the first, or start a run of '
                'its own with load_from and without --resume'
            )
        runner.logger.warning(message)


def _identity(runner: Runner) -> dict:
    model = unwrap(runner.model)
    return dict(model.tokenizer.identity)
