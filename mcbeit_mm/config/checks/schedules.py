"""Compare the lengths of schedules and training before anything is built."""

from mmengine.config import Config, ConfigDict
from mmengine.optim.scheduler.param_scheduler import INF


def check_schedules(cfg: Config) -> None:
    """Raise ValueError if a schedule does not end where training ends.

    The last entry of param_scheduler must end with training, or one iteration later, because
    MMEngine's schedules reach their final value one step before `end`. Schedules in iterations
    pass when training counts epochs: only the data relates the two.
    """
    train = cfg.get('train_cfg') or {}
    planned, actual = cfg.model.get('total_iters'), train.get('max_iters')
    if planned and actual and planned != actual:
        raise ValueError(
            f'the schedules of the tokenizer end at model.total_iters={planned}, training at '
            f'train_cfg.max_iters={actual}: set both (and the end of param_scheduler)'
        )
    epochs = train.get('max_epochs')
    if epochs or actual:
        key = 'max_epochs' if epochs else 'max_iters'
        _check_ends(cfg.get('param_scheduler') or [], key, epochs or actual)
    for hook in cfg.get('custom_hooks') or []:
        warmup = hook.get('warmup_epochs', 0)
        if epochs and warmup > epochs:
            raise ValueError(
                f'{hook.type}: warmup_epochs={warmup} exceeds train_cfg.max_epochs={epochs}'
            )


def _check_ends(schedules: list | ConfigDict, key: str, length: int) -> None:
    ends = {}
    for index, schedule in enumerate(schedules if isinstance(schedules, list) else [schedules]):
        if 'type' not in schedule:  # lists of several optimizers
            continue
        place = f'param_scheduler.{index}'
        by_epoch = schedule.get('by_epoch', True)
        if by_epoch and key == 'max_iters':
            if schedule.get('convert_to_iter_based'):
                continue
            raise ValueError(
                f'{place} counts epochs, but training has train_cfg.{key}={length} iterations: set '
                'by_epoch=False and its lengths in iterations'
            )
        if by_epoch == (key == 'max_epochs'):
            ends[place] = min(_end(schedule, length), INF)
    last = max(ends, key=ends.get, default=None)
    if last and ends[last] != INF and not length <= ends[last] <= length + (key == 'max_iters'):
        raise ValueError(
            f'{last} ends at {ends[last]}, training at train_cfg.{key}={length}: set the same '
            'length for both'
        )


def _end(schedule: ConfigDict, length: int) -> float:
    """Return the end of a schedule; without `end`, Runner ends it with training."""
    begin, end = schedule.get('begin', 0), schedule.get('end', length)
    period = schedule.get('T_max')  # of a cosine, which rises again afterwards
    return end if period is None else begin + period
