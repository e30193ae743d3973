"""Load weights of another naming, patch grid or kind of position table into a backbone.

A backbone that mixes in `PretrainedMixin` and registers `adapt_on_load` accepts them from
`init_cfg`, `load_weights`, `load_state_dict` and, with `FitWeightsHook`, `load_from`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ..errors import SetupError
from ..layers.model_wrappers import unwrap
from ..layers.rel_pos import Grid
from .names import HEADS, SHARED_TABLE, to_official
from .reading import read_checkpoint, state_dict_of


@dataclass(frozen=True)
class FitSettings:
    """Arguments of `checkpoint.load_weights`, kept by the backbone for its load hook."""

    min_match: float = 0.9
    source_grid: Grid | None = None
    quiet: bool = False


@dataclass
class LoadReport:
    """Names of loaded and skipped tensors.

    `missing` and `fresh` are backbone tensors without a counterpart of their shape; `fresh` ones
    are initialized by design. `unused` are tensors of the checkpoint. `share` is the loaded
    fraction of the backbone, fresh parameters excluded.
    """

    matched: list[str]
    missing: list[str]
    fresh: list[str]
    unused: list[str]
    resized: list[str]
    share: float

    @property
    def exact(self) -> bool:
        """Whether checkpoint and backbone had the same names and shapes."""
        return not (self.missing or self.fresh or self.unused or self.resized)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.fresh)
        text = f'{len(self.matched)} of {total} backbone tensors loaded'
        for kind in ('resized', 'missing', 'fresh', 'unused'):
            if names := getattr(self, kind):
                more = ', ...' if len(names) > 4 else ''
                text += f'; {len(names)} {kind}: {", ".join(names[:4])}{more}'
        return text


class PretrainedMixin:
    """Lets `init_cfg=dict(type='Pretrained', checkpoint=...)` accept whatever `load_weights` does.

    The dict may also hold `min_match` and `source_grid`. List this class before `BaseModule`.
    """

    fit_settings = FitSettings()
    fresh_parameters: tuple[str, ...] = ()
    load_report: LoadReport | None = None

    def init_weights(self) -> None:
        """Initialize, then load the pretrained weights; SetupError if that fails."""
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
    """Load by the items of an `init_cfg`, of which `type` and `map_location` have no effect."""
    try:
        state = state_dict_of(read_checkpoint(checkpoint))
        if prefix:
            prefix = prefix.removesuffix('.') + '.'
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        report = load_state(module, state, min_match, source_grid)
    except (ValueError, FileNotFoundError) as error:
        raise SetupError(
            f'pretrained weights: {error}. Set init_cfg.checkpoint of the backbone, or '
            'init_cfg=None to train from scratch'
        ) from error
    print_log(f'{checkpoint}: {report}', logger='current')


def fitting_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the backbones of a model that can fit weights, by their path."""
    return {name: module for name, module in model.named_modules() if hasattr(module, 'fit_state')}


def adapt_on_load(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Load pre-hook: replace a backbone's part of a state dict with what it can load.

    Unknown names stay, so that strict loading reports them; tensors of the wrong shape are removed.
    Sets `module.load_report`.

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

    fresh = [k for k in own if k.startswith(module.fresh_parameters)]
    missing = [k for k in own if k not in fits and k not in fresh]
    expected = max(len(own) - len(fresh), 1)
    misfits = (_with_shapes(k, v, own) for k, v in fitted.items() if k in own and k not in fits)
    report = module.load_report = LoadReport(
        matched=list(fits),
        missing=missing,
        fresh=[k for k in fresh if k not in fits],
        unused=[*foreign, *misfits],
        resized=[k for k, v in fits.items() if _was_resized(k, v, official.backbone)],
        share=(expected - len(missing)) / expected,
    )
    _check_enough(module, report, foreign)
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
    """Rename weights of any known naming for a full model; also list those without a place.

    Tensors outside the backbone are kept where the model has a parameter of their shape.
    """
    path, _ = _backbone_of(model)
    if not path:
        return dict(state), []
    official, own = to_official(state), model.state_dict()
    placed = {f'{path}.{name}': tensor for name, tensor in official.backbone.items()}
    others = dict(official.rest)
    for name, tensor in official.heads.items():
        head, _, kind = name.rpartition('.')
        known = (f'{alias}.{kind}' for alias in HEADS if HEADS[alias] == head)
        others[next((k for k in known if k in own), name)] = tensor
    fits = {k: v for k, v in others.items() if k in own and own[k].shape == v.shape}
    return placed | fits, [_with_shapes(k, v, own) for k, v in others.items() if k not in fits]


def _backbone_of(model: nn.Module) -> tuple[str, nn.Module]:
    found = fitting_modules(model)
    path = 'backbone' if 'backbone' in found else next(iter(found), None)
    if path is None or (len(found) > 1 and path != 'backbone'):
        raise SetupError(
            f'expected one mc-BEiT backbone in {type(model).__name__}, got {list(found)}: load '
            'the weights into the module that needs them'
        )
    return path, found[path]


def _check_enough(module: nn.Module, report: LoadReport, foreign: Iterable[str]) -> None:
    min_match = module.fit_settings.min_match
    if report.share < min_match:
        raise SetupError(
            f'only {report.share:.0%} of the backbone is in these weights, expected at least '
            f'{min_match:.0%}. {report}. If the sizes differ, set the same arch; if the names '
            'differ because the weights are a bare backbone or from another library, use '
            'load_weights(model, path) or, for load_from, FitWeightsHook in custom_hooks; a '
            'smaller min_match accepts them'
        )
    depth = 1 + max((int(k.split('.')[1]) for k in foreign if k.startswith('blocks.')), default=-1)
    if depth > module.num_layers and min_match > 0:
        raise SetupError(
            f'the weights have {depth} blocks, the backbone {module.num_layers}: set the same '
            'arch, or min_match=0 to load only the first blocks'
        )


def _was_resized(name: str, tensor: Tensor, source: Mapping[str, Tensor]) -> bool:
    before = source.get(name, source.get(SHARED_TABLE))
    return before is None or before.shape != tensor.shape


def _with_shapes(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> str:
    if name not in own:
        return name
    return f'{name} {tuple(tensor.shape)}, expected {tuple(own[name].shape)}'
