"""Weights of another naming, patch grid or kind of position table made to fit a backbone.

A backbone that mixes in `PretrainedMixin` and registers `adapt_on_load` takes such weights by every
route: `init_cfg`, `load_weights`, `load_state_dict`, and, with `FitWeightsHook`, `load_from`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ..errors import SetupError
from ..layers.model_wrappers import unwrap
from ..layers.rel_pos import Grid
from .names import SHARED_TABLE, to_official
from .reading import read_checkpoint, state_dict_of

HEAD_NAMES = {'head': ('head.fc', 'head'), 'lm_head': ('head.lm_head', 'head.cls_head', 'lm_head')}


@dataclass(frozen=True)
class FitSettings:
    """How a backbone treats weights that do not fit exactly, see `checkpoint.load_weights`."""

    min_match: float = 0.9
    source_grid: Grid | None = None
    quiet: bool = False


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint and of those of the backbone.

    `missing` are the backbone's without a counterpart of their shape, `fresh` those of them that
    start fresh by design, `unused` the checkpoint's; `share` leaves the fresh ones out.
    """

    matched: list[str]
    missing: list[str]
    fresh: list[str]
    unused: list[str]
    resized: list[str]
    share: float

    @property
    def exact(self) -> bool:
        """Whether each tensor had its counterpart as it is."""
        return not (self.missing or self.fresh or self.unused or self.resized)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.fresh)
        text = f'{len(self.matched)} of {total} backbone tensors loaded'
        for what in ('resized', 'missing', 'fresh', 'unused'):
            if names := getattr(self, what):
                text += f'; {len(names)} {what}: {_some(names)}'
        return text


class PretrainedMixin:
    """Lets `init_cfg=dict(type='Pretrained', checkpoint=...)` take whatever `load_weights` takes.

    The dict may also hold `min_match` and `source_grid`. To be named before `BaseModule`.
    """

    fit_settings = FitSettings()
    fresh_parameters: tuple[str, ...] = ()
    load_report: LoadReport | None = None

    def init_weights(self) -> None:
        """Initialise, then load the pretrained weights; SetupError if that fails."""
        given = self.init_cfg
        cfgs = [given] if isinstance(given, Mapping) else list(given or [])
        pretrained = [cfg for cfg in cfgs if cfg['type'] in ('Pretrained', PretrainedInit)]
        if self.is_init or not pretrained:
            return super().init_weights()
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained]
        super().init_weights()
        self.init_cfg = given
        for cfg in pretrained:
            _load_pretrained(self, **cfg)


def _load_pretrained(
    module: nn.Module,
    type: object,
    checkpoint: str,
    prefix: str | None = None,
    min_match: float = 0.9,
    source_grid: Grid | None = None,
    map_location: str | None = None,
) -> None:
    try:
        state = state_dict_of(read_checkpoint(checkpoint))
        if prefix:
            prefix = prefix.removesuffix('.') + '.'
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        report = load_state(module, state, min_match, source_grid)
    except (ValueError, FileNotFoundError) as error:
        raise SetupError(
            f'pretrained weights: {error}. Set init_cfg.checkpoint of the backbone, or its '
            'init_cfg=None to train from scratch'
        ) from error
    print_log(f'{checkpoint}: {report}', logger='current')


def fitting_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Backbones of a model that fit weights, by their path."""
    return {name: module for name, module in model.named_modules() if hasattr(module, 'fit_state')}


def adapt_on_load(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Load pre-hook: replace a backbone's part of a state dict by what the backbone can take.

    Names that it has no parameter for stay, so that a strict load still reports them; tensors of
    another shape go. Writes `module.load_report`.

    Raises:
        SetupError: fewer tensors than `module.fit_settings.min_match` fit, or `fit_state` failed.
    """
    settings, own = module.fit_settings, module.state_dict()
    given = {k: state_dict.pop(k) for k in list(state_dict) if k.startswith(prefix)}
    try:
        official = to_official({k.removeprefix(prefix): v for k, v in given.items()})
        fitted = module.fit_state(official.backbone, settings.source_grid)
    except ValueError as error:
        raise SetupError(str(error)) from error
    fits = {k: v for k, v in fitted.items() if k in own and own[k].shape == v.shape}
    foreign = {k: v for k, v in fitted.items() if k not in own} | official.heads | official.rest
    state_dict.update({prefix + k: v for k, v in (fits | foreign).items()})

    absent = [k for k in own if k not in fits]
    report = module.load_report = LoadReport(
        matched=list(fits),
        missing=[k for k in absent if not k.startswith(module.fresh_parameters)],
        fresh=[k for k in absent if k.startswith(module.fresh_parameters)],
        unused=[*foreign, *(_with_shapes(k, v, own) for k, v in fitted.items() if k in absent)],
        resized=[k for k, v in fits.items() if _was_resized(k, v, official.backbone)],
        share=_share(own, fits, module.fresh_parameters),
    )
    if report.share < settings.min_match:
        raise SetupError(_too_few(report, settings.min_match))
    deeper = {name.split('.')[1] for name in foreign if name.startswith('blocks.')}
    if deeper and settings.min_match > 0 and max(map(int, deeper)) >= module.num_layers:
        raise SetupError(
            f'the weights have {max(map(int, deeper)) + 1} blocks, the backbone {module.num_layers}'
            ': set the same arch, or min_match=0 to take the first blocks alone'
        )
    if not (report.exact or settings.quiet):
        print_log(f'{type(module).__name__}: {report}', logger='current')


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], min_match: float, source_grid: Grid | None
) -> LoadReport:
    """Load a bare state dict of any known naming, see `checkpoint.load_weights`."""
    model = unwrap(model)
    placed, unused = place(model, state)
    module = _backbone_of(model)[1]
    settings = module.fit_settings
    module.fit_settings = FitSettings(min_match, source_grid, quiet=True)
    try:
        model.load_state_dict(placed, strict=False)
    finally:
        module.fit_settings = settings
    module.load_report.unused += unused
    return module.load_report


def place(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Give weights of any known naming the names of a full model; also list what has no place.

    What lies outside of the backbone is kept where the model has a parameter of its shape.
    """
    path, _ = _backbone_of(model)
    if not path:
        return dict(state), []
    official, own = to_official(state), model.state_dict()
    placed = {f'{path}.{name}': tensor for name, tensor in official.backbone.items()}
    others = dict(official.rest)
    for name, tensor in official.heads.items():
        head, _, kind = name.rpartition('.')
        known = (f'{own_head}.{kind}' for own_head in HEAD_NAMES[head])
        others[next((k for k in known if k in own), name)] = tensor
    fits = {k: v for k, v in others.items() if k in own and own[k].shape == v.shape}
    return placed | fits, [_with_shapes(k, v, own) for k, v in others.items() if k not in fits]


def _backbone_of(model: nn.Module) -> tuple[str, nn.Module]:
    found = fitting_modules(model)
    path = 'backbone' if 'backbone' in found else next(iter(found), None)
    if path is None or (len(found) > 1 and path != 'backbone'):
        raise SetupError(
            f'expected one mc-BEiT backbone in {type(model).__name__}, got {list(found)}: load '
            'the weights into the part that needs them'
        )
    return path, found[path]


def _share(own: Mapping, fits: Mapping, fresh: tuple[str, ...]) -> float:
    wanted = [name for name in own if not name.startswith(fresh)]
    return sum(name in fits for name in wanted) / max(len(wanted), 1)


def _too_few(report: LoadReport, min_match: float) -> str:
    return (
        f'only {report.share:.0%} of the backbone is in these weights, expected at least '
        f'{min_match:.0%}. {report}. If the sizes differ, set the same arch; if the names differ '
        'because the weights are those of a backbone alone or of another library, use '
        'load_weights(model, path) or, for load_from, FitWeightsHook in custom_hooks; a smaller '
        'min_match accepts them'
    )


def _was_resized(name: str, tensor: Tensor, source: Mapping[str, Tensor]) -> bool:
    before = source.get(name, source.get(SHARED_TABLE))
    return before is None or before.shape != tensor.shape


def _with_shapes(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> str:
    if name not in own:
        return name
    return f'{name} {tuple(tensor.shape)}, expected {tuple(own[name].shape)}'


def _some(names: list[str]) -> str:
    return ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
