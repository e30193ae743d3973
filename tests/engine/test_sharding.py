"""Sharded optimizer states: the weights of AdamW, half the state, interchangeable checkpoints."""

import shutil
import tempfile
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from ddp_runs import ADAMW, UNEVEN, images, model, on_ranks, optimizer_for, train, wrapped
from mmengine.config import Config
from mmengine.runner import Runner

from mcbeit_mm.engine.sharding import ShardedOptimizer, consolidate
from mcbeit_mm.errors import SetupError

SHARDED = dict(ADAMW, type='ShardedOptimizer', optimizer_type='AdamW')

WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)  # CPUs


def run(rank, world, optimizer, steps, checkpoint=None):
    """Weights and optimizer after these steps, from the start or from a checkpoint."""
    algorithm = model()
    net = wrapped(algorithm)
    optim = optimizer_for(algorithm, optimizer, type='Bf16OptimWrapper')
    if checkpoint:
        algorithm.load_state_dict(checkpoint['state_dict'])
        optim.load_state_dict(checkpoint['optimizer'])
    train(net, optim, rank, world, steps)
    return algorithm.state_dict(), optim


def saved(rank, state, optim):
    """A checkpoint as MMEngine saves it: on rank 0 only, the others read it."""
    consolidate(SimpleNamespace(optim_wrapper=optim))
    box = [dict(state_dict=state, optimizer=optim.state_dict()) if rank == 0 else None]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def scaled_steps(rank, world, optimizer):
    """With a loss scaler: a step with infinite gradients, which all ranks skip, and a good one."""
    algorithm = model()
    net = wrapped(algorithm)
    optim = optimizer_for(algorithm, optimizer)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    start = algorithm.backbone.cls_token.detach().clone()
    for size in (float('inf'), 1.0):
        loss = sum(param.square().sum() for param in net.module.parameters())
        scaler.scale(loss).backward()
        algorithm.backbone.cls_token.grad *= size
        scaler.unscale_(optim.optimizer)
        scaler.step(optim.optimizer)
        scaler.update()
        if size > 1:
            assert torch.equal(algorithm.backbone.cls_token, start)
            optim.zero_grad()
    return {k: v.clone() for k, v in algorithm.state_dict().items()}


def collate(items):
    inputs = [torch.stack(views) for views in zip(*(item[0] for item in items), strict=True)]
    return dict(inputs=inputs, data_samples=[item[1] for item in items])


def runner_weights(optimizer, folder, max_iters, resume_from=None):
    """Train with our checkpoint hook, 16 images an epoch; return the final weights."""
    torch.manual_seed(0)
    views, samples = images(UNEVEN * 2)
    runner = Runner(
        model(),
        folder,
        train_dataloader=dict(
            dataset=list(zip(zip(*views, strict=True), samples, strict=True)),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type=collate),
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(
            type='Bf16OptimWrapper',
            optimizer=optimizer,
            clip_grad=dict(max_norm=0.5),
            constructor='ViTLayerDecayConstructor',
        ),
        param_scheduler=dict(type='WarmupCosineLR', warmup=1, end=4, by_epoch=False),
        default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=2, by_epoch=False)),
        launcher='pytorch',
        default_scope='mmpretrain',
        cfg=dict(model_wrapper_cfg=WRAPPER),
        randomness=dict(seed=0),
        resume=bool(resume_from),
        load_from=resume_from,
        experiment_name=f'{optimizer["type"]}_{max_iters}_{bool(resume_from)}',
    )
    return runner.train().module.state_dict()


def everything(rank, world):
    results = {}
    box = [tempfile.mkdtemp()]
    torch.distributed.broadcast_object_list(box)
    for optimizer in (ADAMW, SHARDED):
        kind, folder = optimizer['type'], f'{box[0]}/{optimizer["type"]}'
        results[f'runner {kind}'] = runner_weights(optimizer, folder, 4)
        runner_weights(optimizer, f'{folder}-half', 2)
        half = f'{folder}-half/iter_2.pth'
        results[f'runner {kind} resumed'] = runner_weights(optimizer, f'{folder}-rest', 4, half)
    for name, optimizer, other in (('plain', ADAMW, SHARDED), ('sharded', SHARDED, ADAMW)):
        results[name], _ = run(rank, world, optimizer, range(4))
        half = saved(rank, *run(rank, world, optimizer, range(2)))
        groups = half['optimizer']['param_groups']
        results[f'{name} groups'] = [(g['lr'], g['weight_decay'], g['params']) for g in groups]
        results[f'{name} resumed'], optim = run(rank, world, optimizer, range(2, 4), half)
        results[f'{name} state'] = saved(rank, {}, optim)['optimizer']['state']
        half = saved(rank, *run(rank, world, optimizer, range(2)))
        results[f'{name} resumed by the other'], _ = run(rank, world, other, range(2, 4), half)
        results[f'{name} scaled'] = scaled_steps(rank, world, optimizer)
    torch.distributed.barrier()
    if rank == 0:
        shutil.rmtree(box[0])
    optim = run(rank, world, SHARDED, range(1))[1].optimizer
    results['share'] = sum(p.numel() for p in optim.optim.state)
    if rank == 0:
        with pytest.raises(RuntimeError, match='not been consolidated'):
            optim.state_dict()
    return results


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp('sharding'), everything)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize(
    'name',
    [
        'sharded',
        'plain resumed',
        'sharded resumed',
        'plain resumed by the other',
        'sharded resumed by the other',
    ],
)
def test_weights_are_those_of_adamw_bit_by_bit(ranks, name):
    for rank in ranks:
        assert_same(rank[name], ranks[0]['plain'])


@pytest.mark.parametrize('name', ['ShardedOptimizer', 'AdamW resumed', 'ShardedOptimizer resumed'])
def test_runner_saves_and_resumes_bit_by_bit(ranks, name):
    start = model().head.lm_head.weight
    assert (ranks[0]['runner AdamW']['head.lm_head.weight'] - start).abs().max() > 1e-2
    for rank in ranks:
        assert_same(rank[f'runner {name}'], ranks[0]['runner AdamW'])


def test_checkpoint_holds_the_whole_state_with_its_groups(ranks):
    plain, sharded = (ranks[0][f'{name} state'] for name in ('plain', 'sharded'))
    assert len(plain) == sum(1 for _ in model().parameters())
    for index, state in plain.items():
        assert_same(sharded[index], state)
    assert ranks[0]['sharded groups'] == ranks[0]['plain groups']
    assert (
        len({group[:2] for group in ranks[0]['sharded groups']}) > 4
    )  # depths, with and without decay


def test_loss_scaler_skips_and_steps_as_with_adamw(ranks):
    for rank in ranks:
        assert_same(rank['sharded scaled'], ranks[0]['plain scaled'])


def test_each_rank_holds_half_of_the_state(ranks):
    total = sum(param.numel() for param in model().parameters())
    assert sum(rank['share'] for rank in ranks) == total
    # Tensors are not split, and the patch embedding is 57 % of this model.
    assert max(rank['share'] for rank in ranks) < 0.58 * total


def test_one_process_is_refused():
    with pytest.raises(SetupError, match='dist_train.sh'):
        ShardedOptimizer(model().parameters(), 'AdamW', lr=1e-3)


def test_consolidate_leaves_other_optimizers_alone():
    optim = optimizer_for(model())
    consolidate(SimpleNamespace(optim_wrapper=optim))
    assert not optim.state_dict()['state']


def test_config_keeps_the_recipe():
    name = 'configs/pretrain/mcbeit_vit-large-p16_{}-amp-coslr-800e_in1k.py'
    plain, sharded = (Config.fromfile(ROOT / name.format(n)) for n in ('16xb128', '8xb256-zero1'))
    plain.train_dataloader.batch_size = 256
    optimizer = sharded.optim_wrapper.optimizer
    assert (optimizer.pop('type'), optimizer.pop('optimizer_type')) == ('ShardedOptimizer', 'AdamW')
    assert plain.optim_wrapper.optimizer.pop('type') == 'AdamW'
    assert sharded._cfg_dict == plain._cfg_dict
