"""The hook that reports bad samples and stops the run."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image

import mcbeit_mm.engine.loops  # noqa: F401  registers ResumableEpochLoop
from mcbeit_mm.datasets.bad_samples import BadSamples
from mcbeit_mm.datasets.images import BadImageError
from mcbeit_mm.engine.hooks.bad_samples import BadSamplesHook
from mcbeit_mm.errors import SetupError


def runner_of(bad, name):
    dataset = SimpleNamespace() if bad is None else SimpleNamespace(bad_samples=bad)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    return SimpleNamespace(train_loop=loop, message_hub=MessageHub.get_instance(name), iter=0)


@pytest.fixture
def warned(monkeypatch):
    messages = []
    monkeypatch.setattr(
        'mcbeit_mm.engine.hooks.bad_samples.print_log',
        lambda text, logger, level: messages.append((level, text)),
    )
    return messages


def fail(bad, index, seen=1):
    bad._seen[: max(seen, index + 1)] = 1
    bad.note(index, f'{index}.jpg', BadImageError('truncated'))


def test_registered_with_its_share():
    assert HOOKS.build(dict(type='BadSamplesHook', max_share=0.2)).max_share == 0.2
    with pytest.raises(ValueError, match='max_share'):
        BadSamplesHook(max_share=2)


def test_other_data_sets_are_ignored(warned):
    runner = runner_of(None, 'bad_none')
    hook = BadSamplesHook()
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    assert not warned and 'train/bad_samples' not in runner.message_hub.log_scalars


def test_warns_once_for_each_increase(tmp_path, warned):
    bad = BadSamples(10_000, seed=0, report=tmp_path / 'bad.jsonl')
    runner = runner_of(bad, 'bad_rise')
    hook = BadSamplesHook(max_share=0.1)
    hook.before_train(runner)
    assert bad.max_share == 0.1
    counts = []
    for new in ([], [5], [], [8, 9], []):
        for index in new:
            fail(bad, index)
        hook.after_train_iter(runner, 0)
        counts.append(runner.message_hub.get_scalar('train/bad_samples').current())
    assert counts == [0, 1, 1, 3, 3]
    assert [level for level, _ in warned] == [logging.WARNING] * 2
    first, second = (text for _, text in warned)
    assert 'replaced so far: 1;' in first and '5.jpg: BadImageError: truncated' in first
    assert str(tmp_path / 'bad.jsonl') in first
    assert '5.jpg' not in second and '8.jpg' in second and '9.jpg' in second


def test_known_ones_are_counted_but_not_shown_again(tmp_path, warned):
    fail(BadSamples(10_000, seed=0, report=tmp_path / 'bad.jsonl'), 5)
    bad = BadSamples(10_000, seed=0, report=tmp_path / 'bad.jsonl')
    runner, hook = runner_of(bad, 'bad_known'), BadSamplesHook()
    for index in (5, 6):
        fail(bad, index)
        hook.after_train_iter(runner, 0)
    assert [('5.jpg' in text, '6.jpg' in text) for _, text in warned] == [
        (False, False),
        (False, True),
    ]


def test_stops_over_the_limit(tmp_path, warned):
    bad = BadSamples(10_000, seed=0, report=tmp_path / 'bad.jsonl', max_share=1)
    runner, hook = runner_of(bad, 'bad_limit'), BadSamplesHook(max_share=0.01)
    for index in range(20):  # before the hook sets the share
        fail(bad, index, seen=2000)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    bad.max_share = 1
    fail(bad, 20)
    hook.before_train(runner)
    with pytest.raises(SetupError) as error:
        hook.after_train_iter(runner, 1)
    parts = ('21 of the 2000', 'share of 0.01', 'bad.jsonl', '0.jpg: BadImageError: truncated')
    for part in parts:
        assert part in str(error.value)


class Mean(BaseModel):
    """Learns the mean color."""

    def __init__(self):
        super().__init__()
        self.color = torch.nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, inputs, mode='loss', **_):
        return dict(loss=((torch.stack(inputs).float() - self.color) ** 2).mean())


class Images(torch.utils.data.Dataset):
    """Images of a folder read by `LoadCheckedImage`."""

    def __init__(self, root):
        from mcbeit_mm.datasets.images import LoadCheckedImage

        self.paths, self.load = sorted(map(str, root.glob('*.jpg'))), LoadCheckedImage()

    def __len__(self):
        return len(self.paths)

    def get_data_info(self, index):
        return dict(img_path=self.paths[index])

    def __getitem__(self, index):
        image = self.load(dict(img_path=self.paths[index]))['img']
        return dict(inputs=torch.from_numpy(image).permute(2, 0, 1))


def train(root, work_dir, max_share, workers):
    runner = Runner(
        model=Mean(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Images(root),
            batch_size=8,
            num_workers=workers,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        custom_hooks=[dict(type='BadSamplesHook', max_share=max_share)],
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=3),
        experiment_name=f'{work_dir.name}_{max_share}',
    )
    runner.train()
    return runner


def test_a_run_over_damaged_files(tmp_path):
    root = tmp_path / 'photos'
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(64):
        picture = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / f'{index:02d}.jpg')
    (root / '05.jpg').write_bytes(b'')
    (root / '20.jpg').write_bytes((root / '20.jpg').read_bytes()[:-60])
    learnt = []
    for workers in (0, 1):
        work_dir = tmp_path / f'work{workers}'
        runner = train(root, work_dir, 0.05, workers)
        learnt.append(runner.model.color.detach().flatten())
        assert runner.message_hub.get_scalar('train/bad_samples').current() == 2
        listed = map(json.loads, (work_dir / 'bad_samples.jsonl').read_text().splitlines())
        assert {line['path'] for line in listed} == {str(root / '05.jpg'), str(root / '20.jpg')}
        (log,) = work_dir.glob('*/*.log')
        assert 'unreadable training samples' in log.read_text()
        assert 'bad_samples: 2\n' in log.read_text()
    assert torch.equal(*learnt)
    with pytest.raises(SetupError, match=r'of 64\) could not be read, more than a share of 0.02'):
        train(root, tmp_path / 'strict', 0.02, 0)
