"""One training step on random images, and what the run would take: tools/train.py --check."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from .checks.batch import global_batch
from .checks.classes import innermost_dataset
from .checks.disk import GIB, check_disk, checkpoint_size, count, free_space, planned_checkpoints
from .launch import set_precision
from .memory import estimate_memory
from .synthetic import training_batch

PRECISION = dict(OptimWrapper='fp32', AmpOptimWrapper='fp16', Bf16OptimWrapper='bf16')
BATCH_SIZE = 2  # batch norm refuses one image


def run_check(cfg: Config) -> None:
    """Print `check_step` and that nothing stands in the way of the run; writes no file."""
    print(check_step(cfg))
    print('all is well: the same command without --check starts the run')


def check_step(cfg: Config) -> str:
    """Report on a config after one step of forward and backward on random images.

    Raises:
        ValueError: the loss or a gradient is not finite, or the checkpoints do not fit on the disk.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg, note = _for_device(cfg)
    with _quiet():
        plan = _plan(cfg)
        model = MODELS.build(cfg.model)
        if hasattr(model, 'init_weights'):
            model.init_weights()
        model = revert_sync_batchnorm(model)  # one process
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    _enter_last_phase(model)
    size = _input_size(cfg.model)
    memory = estimate_memory(model, size, half=cfg.optim_wrapper.type != 'OptimWrapper')
    step = _train_one_step(model, optim_wrapper, size)
    parameters, trained = count(model)
    check_disk(cfg, parameters, trained)
    images = cfg.train_dataloader.batch_size
    lines = dict(
        task=f'{_name(cfg.model)} in {cfg.get("default_scope", "mmengine")}',
        **plan,
        model=f'{parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained',
        groups=_groups(optim_wrapper.optimizer),
        step=f'{step}{note}',
        memory=f'{memory.total(images) / GIB:.1f} GiB for {images} images on a GPU (estimate)',
        disk=_disk(cfg, checkpoint_size(cfg, parameters, trained)),
    )
    return '\n'.join(f'{name:<14}{text}' for name, text in lines.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MMEngine's line for each parameter that is initialized."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def _for_device(cfg: Config) -> tuple[Config, str]:
    """A copy of the config that runs here, and what is other than in the config."""
    cfg = Config(cfg.to_dict())
    if cfg.optim_wrapper.type == 'AmpOptimWrapper' and not torch.cuda.is_available():
        set_precision(cfg, 'bf16')
        return cfg, '; in bf16, since fp16 needs a GPU'
    return cfg, ''


def _enter_last_phase(model: nn.Module) -> None:
    """Let a tokenizer in training have codes and discriminator, which come in after a while."""
    if hasattr(model, 'vqgan'):
        model.placed.fill_(True)
        model.iteration.fill_(model.total_iters - 1)


def _input_size(model: ConfigDict) -> tuple[int, int]:
    """Pixels of the images: those that the position tables or the tokenizer are made for."""
    if 'ddconfig' in model:
        side = model.ddconfig.resolution
    else:
        side = model.backbone.get('img_size', 224)  # MCBEiTViT's default
    return (side, side) if isinstance(side, int) else tuple(side)


def _train_one_step(model: nn.Module, optim_wrapper: OptimWrapper, size: tuple[int, int]) -> str:
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model.to(device).train()
    batch = _move(training_batch(model, BATCH_SIZE, size), device)
    start = time.perf_counter()
    with optim_wrapper.optim_context(model):
        losses = model(**batch, mode='loss')
        loss, _ = model.parse_losses(losses)
    loss.backward()  # without the loss scale of fp16, which is found in the first steps
    seconds = time.perf_counter() - start
    if not torch.isfinite(loss):
        raise ValueError(f'the loss of random images is {loss.item()}: {_short(losses)}')
    text = (
        f'loss {loss.item():.4f}, forward and backward of {BATCH_SIZE} images of '
        f'{size[0]}x{size[1]} in {seconds:.1f} s on {device}'
    )
    if missing := _check_gradients(model):
        text += f'; no gradient reaches {len(missing)} parameters: {_first(missing)}'
    return text


def _check_gradients(model: nn.Module) -> list[str]:
    """Names of the trained parameters without gradient; ValueError if one is not finite."""
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    bad = [name for name, grad in trained if grad is not None and not grad.isfinite().all()]
    if bad:
        raise ValueError(f'{len(bad)} gradients are not finite: {_first(bad)}')
    return [name for name, grad in trained if grad is None]


def _plan(cfg: Config) -> dict[str, str]:
    """Lines on data, length and batch; builds the data set to count it."""
    loader = cfg.train_dataloader
    dataset = DATASETS.build(loader.dataset)
    images, processes, accumulated = global_batch(cfg)
    per_iteration = images * processes
    iterations = (
        len(dataset) // per_iteration
        if loader.get('drop_last')
        else -(-len(dataset) // per_iteration)
    )
    if not iterations:
        raise ValueError(
            f'{len(dataset)} images do not fill one iteration of {per_iteration}, and drop_last '
            'drops what is left over: take a smaller train_dataloader.batch_size'
        )
    train = cfg.train_cfg
    epochs = train.get('max_epochs')
    length = f'{epochs} epochs x {iterations} iterations' if epochs else (
        f'{train.max_iters} iterations, {train.max_iters / iterations:.1f} epochs'
    )  # fmt: skip
    inner = innermost_dataset(loader.dataset)
    return dict(
        data=f'{len(dataset):,} images of {_name(inner)} in {inner.get("data_root") or "."}',
        length=length,
        batch=f'{images} images x {processes} processes x {accumulated} accumulated = '
        f'{per_iteration * accumulated}',
    )


def _groups(optimizer: torch.optim.Optimizer) -> str:
    """Learning rates and how many parameters decay by how much."""
    groups = optimizer.param_groups
    rates = sorted({group['lr'] for group in groups})
    sizes: dict[float, int] = {}
    for group in groups:
        decay = group.get('weight_decay', 0)
        sizes[decay] = sizes.get(decay, 0) + sum(p.numel() for p in group['params'])
    decays = ', '.join(f'{size / 1e6:.2f} M with decay {decay:g}' for decay, size in sizes.items())
    span = f'{rates[0]:g}' if len(rates) == 1 else f'{rates[0]:g} to {rates[-1]:g}'
    return f'{len(groups)} with learning rate {span}; {decays}'


def _disk(cfg: Config, size: int) -> str:
    free, place = free_space(cfg.work_dir)
    number = planned_checkpoints(cfg)
    return (
        f'up to {number} checkpoints of {size / GIB:.2f} GiB = {number * size / GIB:.1f} GiB; '
        f'{free / GIB:.1f} GiB free at {place}'
    )


def _move(value: object, device: str) -> object:
    if isinstance(value, dict):
        return {key: _move(child, device) for key, child in value.items()}
    if isinstance(value, list):
        return [_move(child, device) for child in value]
    return value.to(device) if hasattr(value, 'to') else value


def _name(config: ConfigDict) -> str:
    return config.type if isinstance(config.type, str) else config.type.__name__


def _first(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _short(losses: dict) -> str:
    return ', '.join(f'{key}={value}' for key, value in losses.items())
