"""Write the tokenizer that is being trained as a folder that pretraining loads."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers.model_wrappers import unwrap
from ...tokenizers.release import write_release


@HOOKS.register_module()
class ExportTokenizerHook(Hook):
    """Writes `<work_dir>/tokenizer` (model.yaml, last.ckpt) in the released layout.

    That is after training and, once there are codes, after each validation in between: a run
    that is stopped early still has its tokenizer. `checkpoint='<work_dir>/tokenizer'` is all that
    GumbelVQGANTokenizer, or EMAVQGANTokenizer, needs.
    """

    _training = False

    def before_train(self, runner: Runner) -> None:
        """Tell validation in between from validation alone, which writes nothing."""
        self._training = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the folder, once there are codes."""
        if self._training and unwrap(runner.model).has_codes:
            self._write(runner)

    def after_train(self, runner: Runner) -> None:
        """Write the folder, or say that there is nothing to write."""
        self._training = False
        if unwrap(runner.model).has_codes:
            self._write(runner)
        else:
            runner.logger.warning('no tokenizer written: training ended before codes were placed')

    def _write(self, runner: Runner) -> None:
        if runner.rank == 0:
            model, folder = unwrap(runner.model), f'{runner.work_dir}/tokenizer'
            write_release(folder, model.vqgan, model.sizes)
            runner.logger.info(f'tokenizer written to {folder}')
