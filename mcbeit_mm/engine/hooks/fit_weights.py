"""Let `load_from` load weights of any known naming, patch grid and position table."""

from dataclasses import replace

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...errors import SetupError
from ...layers.model_wrappers import unwrap
from ...weights.fitting import fitting_modules, place
from ...weights.reading import state_dict_of


@HOOKS.register_module()
class FitWeightsHook(Hook):
    """Applies `checkpoint.load_weights` to `load_from`, not to resumed checkpoints.

    Args:
        min_match: share of the backbone's tensors that must be found, else SetupError.
        complete: require all other parts too, as for a test.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook copies the model and loads the same weights

    def __init__(self, min_match: float = 0.9, complete: bool = False):
        self.min_match, self.complete = min_match, complete

    def before_run(self, runner: Runner) -> None:
        """Set the threshold that the backbone's load pre-hook checks."""
        for module in fitting_modules(unwrap(runner.model)).values():
            module.fit_settings = replace(module.fit_settings, min_match=self.min_match)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Convert the weights to the model's names and shapes."""
        model = unwrap(runner.model)
        if runner._resume or not fitting_modules(model):
            return
        try:
            state, unused = place(model, state_dict_of(checkpoint))
        except ValueError as error:
            raise SetupError(f'load_from: {error}') from error
        absent = [name for name in model.state_dict() if name not in state]
        absent = [name for name in absent if not name.startswith(tuple(fitting_modules(model)))]
        if self.complete and absent:
            raise SetupError(
                f'the checkpoint lacks {", ".join(absent[:4])}; unused: '
                f'{", ".join(unused[:4]) or "none"}: test with the config it was trained with'
            )
        checkpoint['state_dict'] = state
        if unused:
            print_log(f'load_from: unused weights {", ".join(unused)}', logger='current')
