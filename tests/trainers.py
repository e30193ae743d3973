"""Helpers for trainer tests: simple pictures that need few codes, training loops."""

import torch
from conftest import TINY_VQGAN
from mmengine.dataset import default_collate
from mmengine.runner import Runner

DISCRIMINATOR = dict(type='PatchDiscriminator', ndf=4, num_layers=1)
PREPROCESSOR = dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3)


def pictures(count):
    """Return two-colored images (count, 3, 16, 16), split at a random column."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(count, 2, 3, generator=generator)
    columns = torch.randint(4, 12, (count, 1, 1, 1), generator=generator)
    left = torch.arange(16).view(1, 1, 1, 16) < columns
    return torch.where(left, colors[:, 0, :, None, None], colors[:, 1, :, None, None]).expand(
        count, 3, 16, 16
    )


class Pictures(torch.utils.data.Dataset):
    def __init__(self):
        self.images = (255 * pictures(64)).byte()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {'inputs': self.images[index], 'data_samples': index}


def build(cls, warmup_iters=0, total_iters=100, **kwargs):
    torch.manual_seed(0)
    return cls(**TINY_VQGAN, warmup_iters=warmup_iters, total_iters=total_iters, **kwargs)


def steps(trainer, count, lr=2e-3, batch_size=8):
    """Train without a Runner; return the losses of the last step."""
    images = pictures(64)
    optimizer = torch.optim.Adam(trainer.parameters(), lr=lr)
    for step in range(count):
        start = step * batch_size % len(images)
        losses = trainer(images[start : start + batch_size], mode='loss')
        optimizer.zero_grad()
        losses['loss'].backward()
        optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


def run(trainer, work_dir, iters, **kwargs):
    """Train with a Runner; return the exported `work_dir`/tokenizer."""
    Runner(
        model=trainer,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=16,
            num_workers=0,
            dataset=Pictures(),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=default_collate,
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=2e-3)),
        custom_hooks=[dict(type='ExportTokenizerHook')],
        log_level='WARNING',
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}',
        **kwargs,
    ).train()
    return work_dir / 'tokenizer'


def error_of(tokenizer):
    images = pictures(64)
    return float((tokenizer.decode(tokenizer(images).argmax(dim=1)) - images).abs().mean())
