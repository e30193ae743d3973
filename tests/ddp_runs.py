"""Runs of a tiny MCBEiT in one process or several."""

import os
import socket
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample
from tiny_models import TOKENIZER, tiny

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

# Masked patches, of 16, in each image: the totals differ between ranks, of 2 or 4.
UNEVEN = (16, 1, 5, 9, 2, 12, 3, 7)
NONE_ON_RANK_0 = (0, 0, 0, 0, 2, 12, 3, 7)
ADAMW = dict(type='AdamW', lr=1e-2, betas=(0.9, 0.98), weight_decay=0.05)
CASES = dict(
    refined=dict(counts=UNEVEN, omega=0.2),
    plain=dict(counts=UNEVEN, fused=False),
    unrefined=dict(counts=UNEVEN, omega=0.0),
    hard=dict(counts=UNEVEN, omega=0.0, tau=0.0),
    one_rank_without=dict(counts=NONE_ON_RANK_0, omega=0.2),
    nothing_masked=dict(counts=[0] * 8, omega=0.2),
)


def images(counts, seed=0):
    """Views and masks of a global batch with these counts of masked patches."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=generator)
    masks = [draw(16).argsort().view(4, 4) < count for count in counts]
    samples = [DataSample().set_mask(mask) for mask in masks]
    size = len(counts)
    return [draw(size, 3, 64, 64) * 4 - 2, draw(size, 3, 32, 32)], samples


def part(batch, rank, world):
    """The share of a global batch that one rank gets."""
    (view, second), samples = batch
    size = len(samples) // world
    mine = slice(rank * size, (rank + 1) * size)
    return [view[mine], second[mine]], samples[mine]


def model(**head):
    """Build a tiny MCBEiT, with the same weights in every call."""
    torch.manual_seed(0)
    tokenizer = GumbelVQGANTokenizer(**{k: v for k, v in TOKENIZER.items() if k != 'type'})
    for param in tokenizer.parameters():  # otherwise the logits are nearly equal
        param.data *= 1.5
    head = dict(type='MCBEiTHead', embed_dims=32, vocab_size=24, **head)
    algorithm = tiny(head=head, target_generator=tokenizer, data_preprocessor=None)
    algorithm.head.lm_head.weight.data *= 30  # otherwise the loss is log(vocab_size)
    return algorithm.train()


def wrapped(algorithm):
    if not dist.is_initialized():
        return algorithm
    return MMDistributedDataParallel(algorithm, device_ids=None, broadcast_buffers=False)


def gradients(rank, world, counts, **settings):
    algorithm = model(**settings)
    net = wrapped(algorithm)  # must live until backward
    terms = net(*part(images(counts), rank, world), mode='loss')
    terms['loss'].backward()
    grads = {name: param.grad for name, param in algorithm.named_parameters()}
    return dict(terms={k: v.detach() for k, v in terms.items()}, grads=grads)


def optimizer_for(algorithm, optimizer=ADAMW, **kwargs):
    return build_optim_wrapper(
        algorithm,
        dict(
            optimizer=optimizer,
            clip_grad=dict(max_norm=0.5),
            constructor='ViTLayerDecayConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9),
            **kwargs,
        ),
    )


def train(net, optim, rank, world, steps):
    """Run train_step with a different global batch at each step."""
    forward = net.module if isinstance(net, MMDistributedDataParallel) else net
    forward.data_preprocessor.forward = lambda data, training=False: data  # tensors are ready
    for step in steps:
        inputs, samples = part(images(UNEVEN[step:] + UNEVEN[:step], seed=step), rank, world)
        net.train_step(dict(inputs=inputs, data_samples=samples), optim)


def weights(rank, world, steps=4, **kwargs):
    algorithm = model()
    net = wrapped(algorithm)
    train(net, optimizer_for(algorithm, **kwargs), rank, world, range(steps))
    return {k: v.clone() for k, v in algorithm.state_dict().items()}


def everything(rank, world):
    """All results that the tests compare."""
    results = {name: gradients(rank, world, **case) for name, case in CASES.items()}
    with mock.patch('mcbeit_mm.head.patches_per_rank', lambda mask, device: mask.sum()):
        results['own means'] = gradients(rank, world, **CASES['refined'])
    results['weights'] = weights(rank, world)
    results['weights again'] = weights(rank, world)
    results['accumulated'] = weights(rank, world, accumulative_counts=2)
    if world > 1:
        with torch.no_grad():  # ranks may evaluate unequal numbers of batches
            algorithm = model()
            for _ in range(1 + rank):
                algorithm(*part(images(UNEVEN), rank, world), mode='loss')
    return results


def one_rank(rank, world, port, folder, work):
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)  # MMEngine's wrap_model reads it
    store = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=world)
    torch.save(work(rank, world), f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(world, folder, work):
    """Results of `work(rank, world)` on all ranks, each a process of a gloo group."""
    os.makedirs(folder, exist_ok=True)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    args = (world, port, str(folder), work)
    mp.start_processes(one_rank, args, nprocs=world, start_method='fork')
    return [torch.load(f'{folder}/{rank}.pt') for rank in range(world)]
