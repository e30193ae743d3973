"""Training from a cache is training with the tokenizer, on crops that come back."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS, MODELS
from tiny_cache import NUM_IMAGES, cached_config, make_cache, tiny_config, write_photos

from mcbeit_mm.cached_targets import building as cache_building
from mcbeit_mm.cached_targets.building import CacheBuilder, split_pipeline
from mcbeit_mm.cached_targets.cache import MANIFEST, TargetCache, image_check, open_cache
from mcbeit_mm.cached_targets.records import decode
from mcbeit_mm.datasets.seeded_data import CROPS, SAMPLES, SeededDataset, seed_generators
from mcbeit_mm.transforms import TwoViewRandomResizedCrop


@pytest.fixture(autouse=True)
def _fresh():
    open_cache.cache_clear()


@pytest.fixture
def root(tmp_path):
    return write_photos(tmp_path)


def batch_of(cfg, indices=(0, 1, 3, 4)):
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    samples = []
    for index in indices:
        seed_generators(SAMPLES, 5, 0, index)
        samples.append(dataset[index])
    return default_collate(samples)


def online_batch(cfg, plan, indices=(0, 1, 3, 4)):
    """The slow way: draw the same crop number, then crop and resize both views from its seed."""
    load = DATASETS.build(cfg.train_dataloader.dataset).pipeline.transforms[0]
    crop = TwoViewRandomResizedCrop(size=32, second_size=8, flip_prob=0.5)
    views = []
    for index in indices:
        seed_generators(SAMPLES, 5, 0, index)
        number = np.random.randint(plan.num_crops)
        path = f'{cfg.train_dataloader.dataset.data_root}/train/{index}.jpg'
        results = load(dict(img_path=path))
        seed_generators(CROPS, plan.seed, index, number)
        views.append(crop(results)['img'])
    return [torch.from_numpy(np.stack(v)).permute(0, 3, 1, 2) for v in zip(*views, strict=True)]


def test_all_codes_give_the_same_loss_and_gradients_to_the_bit(root):
    cfg = tiny_config(root)
    plan = make_cache(cfg, root / 'cache').plan
    cached_cfg = cached_config(cfg, root / 'cache')
    batch = batch_of(cached_cfg)
    views = online_batch(cfg, plan)
    assert torch.equal(batch['inputs'][0], views[0])  # the student's view
    models = [MODELS.build(config.model) for config in (cached_cfg, cfg)]
    models[1].load_state_dict(models[0].state_dict())
    results = []
    for model, inputs in zip(models, (batch['inputs'], views), strict=True):
        data = model.data_preprocessor(dict(batch, inputs=inputs))
        logits = model.tokenizer(data['inputs'][1])
        loss = model(**data, mode='loss')['loss']
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([logits, loss.detach(), *grads])
    for cached, online in zip(*results, strict=True):
        assert torch.equal(cached, online)


def test_crops_come_back_masks_do_not(root):
    cfg = tiny_config(root)
    make_cache(cfg, root / 'cache', num_crops=2)
    config = cached_config(cfg, root / 'cache').train_dataloader.dataset
    dataset = SeededDataset(DATASETS.build(config), 0)
    epochs = [dataset[0, (epoch, 0)] for epoch in range(12)]
    views = {sample['inputs'][0].numpy().tobytes() for sample in epochs}
    assert len(views) == 2
    assert len({sample['inputs'][1].numpy().tobytes() for sample in epochs}) == 2
    assert len({sample['data_samples'].mask.numpy().tobytes() for sample in epochs}) > 6
    again = dataset[0, (3, 0)]
    assert torch.equal(again['inputs'][1], epochs[3]['inputs'][1])


def test_unreadable_images_are_replaced_in_training(root):
    cfg = tiny_config(root)
    builder = CacheBuilder(cfg, None, 1, 'float32')
    assert builder.build(root / 'cache', batch_size=4, report=lambda _: None) == 1
    config = cached_config(cfg, root / 'cache').train_dataloader.dataset
    dataset = SeededDataset(DATASETS.build(config), 0)
    dataset.bad_samples.max_share = 0.5
    assert dataset[2, (0, 0)]['data_samples'].img_path.endswith('.jpg')
    assert dataset.bad_samples.count == 1


def test_results_hang_on_neither_batch_nor_workers_nor_file_size(root, monkeypatch):
    cfg = tiny_config(root)
    make_cache(cfg, root / 'one', num_crops=2)
    monkeypatch.setattr(cache_building, 'FILE_BYTES', 5000)
    builder = CacheBuilder(cfg, None, 2, 'float32')
    assert builder.plan.images_per_file == 2
    builder.build(root / 'other', batch_size=5, num_workers=2, report=lambda _: None)
    assert len(list((root / 'other').glob('*.bin'))) == 3
    caches = TargetCache(root / 'one'), TargetCache(root / 'other')
    for index in (0, 1, 3, 4, 5):
        shape = 40 + 3 * index, 60 - 2 * index
        for crop in range(2):
            check = image_check(f'{index}.jpg', shape)
            one, other = (torch.from_numpy(c.read(index, crop, check).copy())[None] for c in caches)
            record = caches[0].record
            # Convolutions of other batches may round otherwise.
            assert (decode(one, record) - decode(other, record)).abs().max() < 1e-5


def test_a_stopped_run_goes_on(root, monkeypatch):
    cfg = tiny_config(root)
    monkeypatch.setattr(cache_building, 'FILE_BYTES', 5000)
    make_cache(cfg, root / 'whole', num_crops=2)
    out = root / 'cache'

    class Stopped(Exception):
        pass

    def stop(line):
        if line.startswith('2/3'):
            raise Stopped

    builder = CacheBuilder(cfg, None, 2, 'float32')
    with pytest.raises(Stopped):
        builder.build(out, 2, report=stop)
    with pytest.raises(FileNotFoundError, match='unfinished'):
        TargetCache(out)
    with pytest.raises(ValueError, match='unfinished cache of other settings'):
        CacheBuilder(cfg, 3, 2, 'float32').build(out, 2)
    lines = []
    CacheBuilder(cfg, None, 2, 'float32').build(out, 2, report=lines.append)
    assert [line.split(',')[0] for line in lines] == ['1/1 files']
    for file in sorted((root / 'whole').iterdir()):
        assert (out / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError, match='a finished cache'):
        builder.build(out, 2)


def test_other_files_are_left_alone(root):
    with pytest.raises(FileExistsError, match='other files'):
        make_cache(tiny_config(root), root)


@pytest.mark.parametrize(
    'steps, message',
    [
        ([dict(type='LoadCheckedImage'), dict(type='ColorJitter')], 'ColorJitter comes before'),
        ([dict(type='RandomFlip', prob=0.5, direction='vertical')], 'RandomFlip comes before'),
        ([dict(type='LoadCheckedImage')], 'no TwoViewRandomResizedCrop'),
    ],
)
def test_pipelines_that_cannot_be_cached(steps, message):
    with pytest.raises(ValueError, match=message):
        split_pipeline(steps)


def test_crop_keeps_all_its_arguments():
    steps = [
        dict(type='LoadCheckedImage', max_pixels=9),
        dict(type='RandomFlip', prob=0.25),
        dict(type='TwoViewRandomResizedCrop', size=32, scale=(0.5, 1)),
    ]
    loading, crop = split_pipeline(steps)
    assert loading == steps[:1]
    assert crop['flip_prob'] == 0.25 and crop['scale'] == (0.5, 1)
    assert crop['second_interpolation'] == 'lanczos' and crop['backend'] == 'torch'


def test_a_changing_tau_needs_all_codes(root):
    cfg = tiny_config(root, tau=2.0)
    cfg.custom_hooks = [dict(type='TauWarmupHook', tau_start=1.0)]
    with pytest.raises(ValueError, match='keep all'):
        CacheBuilder(cfg, 4)
    for k in (None, 16):
        assert CacheBuilder(cfg, k).plan.record.tau == 2.0


def test_no_code_is_not_all_codes(root):
    with pytest.raises(ValueError, match='k is 0'):
        CacheBuilder(tiny_config(root), 0)


def test_tool_tries_and_builds(root):
    cfg = tiny_config(root)
    config = root / 'config.py'
    config.write_text(cfg.dump())
    env = dict(os.environ, PYTHONPATH=str(ROOT))

    def tool(*args):
        command = [sys.executable, 'tools/cache_targets.py', config, *args, '--device', 'cpu']
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    tried = tool('--try', '2', '16')
    assert tried.returncode == 0, tried.stderr
    lines = [line.split() for line in tried.stdout.splitlines()[2:] if line[:1].isdigit()]
    assert [line[0] for line in lines] == ['2', '16']
    assert float(lines[0][3]) < float(lines[1][3]) == 1.0  # mass kept
    assert float(lines[0][4]) > float(lines[1][4])  # KL
    built = tool(root / 'cache', '--k', '4', '--crops', '2')
    assert built.returncode == 0, built.stderr
    assert '1 images could not be read' in built.stdout
    plan = TargetCache(root / 'cache').plan
    assert (plan.record.k, plan.num_crops, plan.num_images) == (4, 2, NUM_IMAGES)
    assert (root / 'cache' / MANIFEST).is_file()
    again = tool(root / 'cache', '--k', '4', '--crops', '2')
    assert again.returncode == 2 and 'a finished cache' in again.stderr
