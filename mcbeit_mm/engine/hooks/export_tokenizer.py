"""Export the trained tokenizer as a folder that pretraining loads."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers.model_wrappers import unwrap
from ...tokenizers.release import write_release


@HOOKS.register_module()
class ExportTokenizerHook(Hook):
    """Writes `<work_dir>/tokenizer` (model.yaml, last.ckpt) in the released layout.

    It is written after training and, once codes exist, after each validation, so that runs stopped
    early have one too. Load it with `checkpoint='<work_dir>/tokenizer'` of GumbelVQGANTokenizer or
    EMAVQGANTokenizer.
    """

    _training = False

    def before_train(self, runner: Runner) -> None:
        """Enable writing: a validation without training writes nothing."""
        self._training = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the folder if codes exist."""
        if self._training and unwrap(runner.model).has_codes:
            self._write(runner)

    def after_train(self, runner: Runner) -> None:
        """Write the folder, or warn that there are no codes."""
        self._training = False
        if unwrap(runner.model).has_codes:
            self._write(runner)
        else:
            runner.logger.warning(
                'no tokenizer written: training ended before the codes were initialized'
            )

    def _write(self, runner: Runner) -> None:
        if runner.rank == 0:
            model, folder = unwrap(runner.model), f'{runner.work_dir}/tokenizer'
            write_release(folder, model.vqgan, model.sizes)
            runner.logger.info(f'tokenizer written to {folder}')
