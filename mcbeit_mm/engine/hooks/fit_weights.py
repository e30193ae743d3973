"""Let `load_from` take weights of any known naming, patch grid or kind of position table."""

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
    """Does for `load_from` what `checkpoint.load_weights` does; a resumed run is left alone.

    Args:
        min_match: smallest share of the backbone's tensors that must be found, else SetupError.
        complete: all other parts must be found too, as for a test.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook copies the model and loads the same weights

    def __init__(self, min_match: float = 0.9, complete: bool = False):
        self.min_match, self.complete = min_match, complete

    def before_run(self, runner: Runner) -> None:
        """Hand the threshold to the backbone, whose load pre-hook checks it."""
        for module in fitting_modules(unwrap(runner.model)).values():
            module.fit_settings = replace(module.fit_settings, min_match=self.min_match)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rename the weights for the model."""
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
                f'the checkpoint has no {", ".join(absent[:4])}; no place for '
                f'{", ".join(unused[:4]) or "nothing"}: test with the config it was trained with'
            )
        checkpoint['state_dict'] = state
        if unused:
            print_log(f'load_from: no place for {", ".join(unused)}', logger='current')
