"""Record the tokenizer in checkpoints, and refuse to resume with another one."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...errors import SetupError
from ...layers.model_wrappers import unwrap


@HOOKS.register_module()
class TokenizerIdentityHook(Hook):
    """Saves meta['tokenizer'] = dict(type, checkpoint, sha256) in every checkpoint.

    Resuming with other tokenizer weights raises SetupError, since the targets would change. A moved
    file has the same sha256 and passes. `load_from` without resuming only warns.
    """

    def before_run(self, runner: Runner) -> None:
        """Hash the weights now: the file may change before the first checkpoint."""
        _identity(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the identity."""
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
            f'this run uses {current["checkpoint"]} (sha256 {current["sha256"][:12]})'
        )
        if runner._resume:
            raise SetupError(
                f'{message}: set model.target_generator.checkpoint to the first, or start a new '
                'run with load_from and without --resume'
            )
        runner.logger.warning(message)


def _identity(runner: Runner) -> dict:
    model = unwrap(runner.model)
    return dict(model.tokenizer.identity)
