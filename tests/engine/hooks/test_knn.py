"""KNNHook in small real runs: correct numbers, unchanged training."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from mcbeit_mm.engine.hooks.knn import KNNHook
from mcbeit_mm.errors import SetupError
from mcbeit_mm.evaluation import features as evaluation
from mcbeit_mm.mcbeit import MCBEiT
from mcbeit_mm.tokenizers.base import Tokenizer

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class TinyTokenizer(Tokenizer):
    vocab_size, stride = 12, 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, 4)
        self.freeze()

    def encode(self, x):
        return 3 * self.conv(x)


def make_model():
    torch.manual_seed(3)
    return MCBEiT(
        backbone=dict(
            type='MCBEiTViT',
            arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
            img_size=32,
            patch_size=8,
            drop_path_rate=0.3,
        ),
        head=dict(type='MCBEiTHead', embed_dims=16, vocab_size=12),
        target_generator=TinyTokenizer(),
        data_preprocessor=dict(
            type='mmpretrain.TwoNormDataPreprocessor',
            mean=MEAN,
            std=STD,
            second_mean=[0.0, 0.0, 0.0],
            second_std=[255.0, 255.0, 255.0],
            to_rgb=True,
        ),
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two classes: stripes of two periods; 13 + 7 images, so that ranks get different numbers."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp('images')
    for split, nums in (('train', (7, 6)), ('val', (4, 3))):
        for label, num in enumerate(nums):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(num):
                waves = np.sin(np.arange(40) * (0.3 + 0.3 * label) + rng.uniform(0, 6))
                image = 128 + 60 * waves[None, :, None] + rng.normal(0, 30, (40, 40, 3))
                image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
                image.save(root / split / str(label) / f'{i}.png')
    return root


@pytest.fixture(scope='module')
def datasets(folder):
    return evaluation.folder_datasets(folder, 32, MEAN, STD)


def train(work_dir, folder, hooks):
    """Train with random crops, masks and drop path."""
    runner = Runner(
        make_model(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='CustomDataset',
                data_root=str(folder / 'train'),
                with_label=False,
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='RandomFlip', prob=0.5),
                    dict(type='TwoViewRandomResizedCrop', size=32, second_size=16),
                    dict(type='RandomPatchMask', grid_size=4),
                    dict(type='PackInputs'),
                ],
            ),
        ),
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmpretrain',
        randomness=dict(seed=0),
        log_level='WARNING',
        experiment_name=work_dir.name,
    )
    runner.train()
    return runner


def scalars(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def runs(tmp_path_factory, folder):
    """Work dirs of the same training without and with the hook, and the runner of the latter."""
    plain, hooked = (tmp_path_factory.mktemp(name) for name in ('plain', 'hooked'))
    hook = dict(type='KNNHook', data=str(folder), interval=2, k=5, batch_size=4, num_workers=0)
    train(plain, folder, [])
    return plain, hooked, train(hooked, folder, [hook])


def test_training_is_bit_identical(runs):
    plain, hooked, runner = runs
    states = [torch.load(d / 'epoch_3.pth', weights_only=False) for d in (plain, hooked)]
    for name, tensor in states[0]['state_dict'].items():
        assert torch.equal(tensor, states[1]['state_dict'][name]), name
    start = make_model().state_dict()
    assert not torch.equal(
        start['head.lm_head.weight'], states[0]['state_dict']['head.lm_head.weight']
    )
    losses = [[r['loss'] for r in scalars(d) if 'loss' in r] for d in (plain, hooked)]
    assert losses[0] == losses[1]
    assert all(module.training for module in runner.model.modules())
    assert runner.model.backbone.out_indices == (1,)


def test_accuracy_is_logged_every_interval_and_at_the_end(runs, datasets):
    _, work_dir, runner = runs
    logged = [record for record in scalars(work_dir) if 'knn_top1' in record]
    assert [(r['epoch'], r['step']) for r in logged] == [(2, 8), (3, 12)]
    parts = [
        evaluation.extract_features(
            runner.model.backbone, evaluation.ordered_loader(d, 3, 0), 'cpu', [1]
        )
        for d in datasets
    ]
    data = [x for part in parts for x in (part['feats'][0], part['labels'])]
    expected = evaluation.knn_accuracy(*data, k=5)
    assert logged[-1]['knn_top1'] == pytest.approx(expected, abs=1e-9)
    assert runner.message_hub.get_scalar('knn_top1').current() == logged[-1]['knn_top1']


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(data='nowhere'), 'no folder nowhere/train'),
        (dict(k=14), r'expected k in \[1, 13\], got 14'),
        (dict(max_train=4), r'expected k in \[1, 4\], got 5'),
        (dict(layer=2), 'no layer 2 among 2 blocks'),
    ],
)
def test_mistakes_show_before_training(folder, changes, message):
    hook = KNNHook(**{'data': str(folder), 'k': 5, **changes})
    with pytest.raises(SetupError, match=f'KNNHook: {message}'):
        hook.before_train(SimpleNamespace(model=make_model()))


def features_of_rank(rank, tmp_path, datasets):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=rank, world_size=2
    )
    torch.save(features(datasets), tmp_path / f'{rank}.pt')
    torch.distributed.destroy_process_group()


def features(datasets):
    hook, backbone = KNNHook('', batch_size=3, num_workers=0), make_model().backbone
    return [hook._features(backbone, dataset, torch.device('cpu')) for dataset in datasets]


def test_two_ranks_gather_the_features_of_one(tmp_path, datasets):
    torch.multiprocessing.start_processes(
        features_of_rank, (tmp_path, datasets), nprocs=2, start_method='fork'
    )
    gathered = [torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1)]
    for i, (feats, labels) in enumerate(features(datasets)):
        assert len(feats) == (13, 7)[i]
        for rank in gathered:
            torch.testing.assert_close(rank[i][0], feats, rtol=1e-5, atol=1e-5)
            assert torch.equal(rank[i][1], labels)
