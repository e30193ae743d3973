"""One training step on random images, and what the run would need: tools/train.py --check."""

import time

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from .checks.batch import global_batch
from .checks.classes import innermost_dataset
from .checks.disk import GIB, check_disk, checkpoint_size, count, free_space, planned_checkpoints
from .checks.grids import type_name
from .launch import set_precision, warnings_only
from .memory import estimate_memory, input_size
from .synthetic import training_batch

BATCH_SIZE = 2  # batch norm refuses one image


def run_check(cfg: Config) -> None:
    """Try one step of a config, print a short report and write no file.

    Raises:
        ValueError: the loss or a gradient is not finite, or the checkpoints do not fit on the disk.
    """
    for name, text in check_step(cfg).items():
        print(f'{name:<8}{text}')
    print('Check passed. Rerun without --check to train.')


def check_step(cfg: Config) -> dict[str, str]:
    """Report on a config after forward and backward of random images; see `run_check`."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg = Config(cfg.to_dict())
    note = ''
    if cfg.optim_wrapper.type == 'AmpOptimWrapper' and not torch.cuda.is_available():
        set_precision(cfg, 'bf16')
        note = ', in bf16 because fp16 needs a GPU'
    with warnings_only():  # not a line for each parameter
        data = _describe_data(cfg)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model = revert_sync_batchnorm(model)  # one process
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    _enter_last_phase(model)
    size = input_size(cfg.model)
    memory = estimate_memory(model, size, half=cfg.optim_wrapper.type != 'OptimWrapper')
    step = _train_one_step(model, optim_wrapper, size)
    parameters, trained = count(model)
    check_disk(cfg, parameters, trained)
    images = cfg.train_dataloader.batch_size
    free, place = free_space(cfg.work_dir)
    checkpoint = checkpoint_size(cfg, parameters, trained) / GIB
    return dict(
        model=f'{type_name(cfg.model)}, {parameters / 1e6:.1f} M parameters, '
        f'{trained / 1e6:.1f} M trained',
        data=data,
        step=step + note,
        memory=f'{memory.total(images) / GIB:.1f} GiB on a GPU for {images} images (estimate)',
        disk=f'{planned_checkpoints(cfg)} checkpoints of {checkpoint:.2f} GiB, '
        f'{free / GIB:.1f} GiB free at {place}',
    )


def _enter_last_phase(model: BaseModel) -> None:
    """Let a tokenizer in training have its codes and discriminator, which start late."""
    if hasattr(model, 'vqgan'):
        model.placed.fill_(True)
        model.iteration.fill_(model.total_iters - 1)


def _describe_data(cfg: Config) -> str:
    """Size of the data set, which is built for it, batch and length of training."""
    loader, train = cfg.train_dataloader, cfg.train_cfg
    dataset = DATASETS.build(loader.dataset)
    images, processes, accumulated = global_batch(cfg)
    batch = images * processes
    iterations = len(dataset) // batch if loader.get('drop_last') else -(-len(dataset) // batch)
    if not iterations:
        raise ValueError(
            f'{len(dataset)} images do not fill one iteration of {batch}, and drop_last drops '
            'incomplete ones: set a smaller train_dataloader.batch_size'
        )
    epochs = train.get('max_epochs')
    length = f'{epochs} epochs of {iterations}' if epochs else f'{train.max_iters}'
    place = innermost_dataset(loader.dataset).get('data_root') or '.'
    return (
        f'{len(dataset):,} images in {place}, {length} iterations, '
        f'{batch * accumulated} images per optimizer step'
    )


def _train_one_step(model: BaseModel, optim_wrapper: OptimWrapper, size: tuple[int, int]) -> str:
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model.to(device).train()
    batch = model.data_preprocessor.cast_data(training_batch(model, BATCH_SIZE, size))
    start = time.perf_counter()
    with optim_wrapper.optim_context(model):
        losses = model(**batch, mode='loss')
        loss, _ = model.parse_losses(losses)
    loss.backward()  # unscaled: fp16 finds its loss scale in the first steps
    seconds = time.perf_counter() - start
    if not torch.isfinite(loss):
        values = ', '.join(f'{key}={value}' for key, value in losses.items())
        raise ValueError(f'the loss of random images is {loss.item()}: {values}')
    text = (
        f'loss {loss.item():.4f} of {BATCH_SIZE} random images of {size[0]}x{size[1]}, '
        f'{seconds:.1f} s on {device}'
    )
    if missing := _check_gradients(model):
        text += f'; no gradient reaches {_first(missing)}'
    return text


def _check_gradients(model: BaseModel) -> list[str]:
    """Names of the trained parameters without gradient; ValueError if one is not finite."""
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    bad = [name for name, grad in trained if grad is not None and not grad.isfinite().all()]
    if bad:
        raise ValueError(f'gradients are not finite: {_first(bad)}')
    return [name for name, grad in trained if grad is None]


def _first(names: list[str]) -> str:
    return f'{len(names)} parameters ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
