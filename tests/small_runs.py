"""Runner instances that train within milliseconds."""

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import mcbeit_mm  # noqa: F401  registers loops and hooks


class SmallModel(BaseModel):
    """A regression with dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, inputs, mode='tensor'):
        error = self.net(torch.stack(inputs)).square().mean()
        return dict(loss=error) if mode == 'loss' else [error]


class Rising(BaseMetric):
    """A score that increases with every validation, so that each is the best so far."""

    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Rising.count += 1
        return dict(acc=float(Rising.count))


def small_run(work_dir, hook, iters=None, epochs=None, accumulate=1, val=False, hooks=(), **kwargs):
    """Build a Runner with 6 batches of 2 and the given checkpoint hook."""
    torch.manual_seed(0)
    data = [dict(inputs=inputs) for inputs in torch.randn(12, 4)]
    loader = dict(
        dataset=data,
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_size=2,
        num_workers=0,
        collate_fn=dict(type='pseudo_collate'),
    )
    if iters:
        loader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
    train = (
        dict(type='ResumableIterLoop', max_iters=iters, val_interval=2)
        if iters
        else dict(type='ResumableEpochLoop', max_epochs=epochs)
    )
    if val:
        plain = loader | dict(sampler=dict(type='DefaultSampler', shuffle=False))
        kwargs |= dict(val_dataloader=plain, val_cfg=dict(), val_evaluator=dict(type=Rising))
    return Runner(
        SmallModel(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=train,
        cfg=dict(train_cfg=train),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=accumulate),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=5, by_epoch=False),
        default_hooks=dict(checkpoint=hook, logger=None),
        custom_hooks=list(hooks),
        randomness=dict(seed=3),
        experiment_name=str(work_dir).replace('/', '_') + str(id(object())),
        log_level='WARNING',
        default_scope='mmengine',
        **kwargs,
    )


def weights(runner) -> dict:
    """Copy the model's state."""
    return {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}


def same(one, other) -> bool:
    """Whether two trees of tensors and plain values are bit-equal."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
