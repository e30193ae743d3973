"""Training from a cache equals training with the tokenizer and the same truncation."""

import runpy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS, MODELS
from tiny_cache import NUM_IMAGES, cached_config, make_cache, tiny_config, write_photos

from mcbeit_mm.cached_targets import building
from mcbeit_mm.cached_targets.building import CacheBuilder, split_pipeline
from mcbeit_mm.cached_targets.cache import HEADER, TARGETS, decode, encode, open_arrays, read_header
from mcbeit_mm.datasets.seeded_data import CROPS, SAMPLES, seed_generators
from mcbeit_mm.transforms import TwoViewRandomResizedCrop

TOOL = ROOT / 'tools/cache_targets.py'


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


def online_views(cfg, header, indices=(0, 1, 3, 4)):
    """Both views of the crops that `batch_of` draws, cropped and resized anew."""
    load = DATASETS.build(cfg.train_dataloader.dataset).pipeline.transforms[0]
    crop = TwoViewRandomResizedCrop(size=32, second_size=8, flip_prob=0.5)
    views = []
    for index in indices:
        seed_generators(SAMPLES, 5, 0, index)
        number = np.random.randint(header.num_crops)
        path = f'{cfg.train_dataloader.dataset.data_root}/train/{index}.jpg'
        results = load(dict(img_path=path))
        seed_generators(CROPS, header.seed, index, number)
        views.append(crop(results)['img'])
    return [torch.from_numpy(np.stack(v)).permute(0, 3, 1, 2) for v in zip(*views, strict=True)]


def truncated(token_logits, k, tau=4.0):
    """Logits (B, V, h, w): the k best relative to the best in fp16, the others their mean."""
    relative = token_logits - token_logits.amax(1, keepdim=True)
    least = relative.topk(k, dim=1).values[:, -1:]
    others = torch.where(relative < least, relative.double() / tau, -torch.inf)
    count = (relative < least).sum(1, keepdim=True).clamp_min(1)
    level = tau * (others.exp().sum(1, keepdim=True) / count).log()
    return torch.where(relative < least, level, relative).half().float()


def loss_and_gradients(model, batch, inputs):
    data = model.data_preprocessor(dict(batch, inputs=inputs))
    loss = model(**data, mode='loss')['loss']
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize('k, tolerance', [(None, 0), (5, 1e-3)])
def test_loss_and_gradients_are_those_of_the_truncated_tokenizer(root, k, tolerance):
    cfg = tiny_config(root)
    header = make_cache(cfg, root / 'cache', k).header
    cached_cfg = cached_config(cfg, root / 'cache')
    batch = batch_of(cached_cfg)
    views = online_views(cfg, header)
    assert torch.equal(batch['inputs'][0], views[0])  # the student's view
    cached, online = (MODELS.build(config.model) for config in (cached_cfg, cfg))
    online.load_state_dict(cached.state_dict())
    encode = online.tokenizer.encode
    online.tokenizer.encode = lambda x: truncated(encode(x), header.k)
    loss, gradients = loss_and_gradients(cached, batch, batch['inputs'])
    expected, expected_gradients = loss_and_gradients(online, batch, views)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    assert len(gradients) == len(expected_gradients) > 20
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(gradient, other, rtol=0, atol=tolerance * scale)
    online.tokenizer.encode = encode
    with torch.no_grad():
        exact = online(**online.data_preprocessor(dict(batch, inputs=views)), mode='loss')['loss']
    assert abs(loss / exact - 1) < (1e-4 if k is None else 1e-2)


def test_records_depend_on_neither_batch_size_nor_workers(root):
    cfg = tiny_config(root)
    make_cache(cfg, root / 'one', num_crops=2)
    CacheBuilder(cfg, None, 2).build(root / 'other', 5, num_workers=2)
    (one, checks), (other, others) = (open_arrays(str(root / name)) for name in ('one', 'other'))
    assert np.array_equal(checks, others)
    good = checks != 0
    one, other = (torch.from_numpy(records[good]).flatten(0, 1) for records in (one, other))
    # Convolutions of other batches may round otherwise.
    assert (decode(one, 16, (4, 4)) - decode(other, 16, (4, 4))).abs().max() < 1e-2


def test_an_interrupted_build_starts_over(root, monkeypatch):
    cfg = tiny_config(root)
    make_cache(cfg, root / 'whole', 4, num_crops=2)
    encoded = []

    def interrupt(*args):
        encoded.append(args)
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return encode(*args)

    builder, out = CacheBuilder(cfg, 4, 2), root / 'cache'
    with monkeypatch.context() as patch:
        patch.setattr(building, 'encode', interrupt)
        with pytest.raises(KeyboardInterrupt):
            builder.build(out, 2)
    with pytest.raises(FileNotFoundError, match='an unfinished cache'):
        read_header(out)
    assert builder.build(out, 2) == 1
    for file in sorted((root / 'whole').iterdir()):
        assert (out / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError, match='not empty'):
        builder.build(out, 2)
    with pytest.raises(FileExistsError, match='not empty'):
        builder.build(root, 2)


def test_a_small_disk_is_refused_at_once(root, monkeypatch):
    builder = CacheBuilder(tiny_config(root), 4, 2)
    monkeypatch.setattr(building.shutil, 'disk_usage', lambda _: SimpleNamespace(free=3455))
    with pytest.raises(OSError, match='no space for 0.00 GiB'):  # 6 x 2 x 16 x 9 x 2 bytes
        builder.build(root / 'cache')
    monkeypatch.setattr(building.shutil, 'disk_usage', lambda _: SimpleNamespace(free=3456))
    assert builder.build(root / 'cache') == 1


@pytest.mark.parametrize(
    'steps, message',
    [
        ([dict(type='LoadCheckedImage'), dict(type='ColorJitter')], 'ColorJitter precedes'),
        ([dict(type='RandomFlip', prob=0.5, direction='vertical')], 'RandomFlip precedes'),
        ([dict(type='LoadCheckedImage')], 'no TwoViewRandomResizedCrop'),
    ],
)
def test_pipelines_that_cannot_be_cached(steps, message):
    with pytest.raises(ValueError, match=message):
        split_pipeline(steps)


def test_wrapped_data_sets_are_refused(root):
    cfg = tiny_config(root)
    wrapped = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=wrapped)
    with pytest.raises(ValueError, match='cache concatenated or repeated data sets one by one'):
        CacheBuilder(cfg, None)


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
    with pytest.raises(ValueError, match='keep all codes'):
        CacheBuilder(cfg, 4)
    for k in (None, 16):
        assert CacheBuilder(cfg, k).header.tau == 2.0


def test_zero_codes_are_refused(root):
    with pytest.raises(ValueError, match='k is 0'):
        CacheBuilder(tiny_config(root), 0)


def test_tool_builds(root, monkeypatch, capsys):
    config, cache = root / 'config.py', root / 'cache'
    config.write_text(tiny_config(root).dump())
    options = ['--k', 4, '--crops', 2, '--device', 'cpu', '--workers', 0]
    monkeypatch.setattr(sys, 'argv', [str(word) for word in (TOOL, config, cache, *options)])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert '\n1 unreadable images' in capsys.readouterr().out
    header = read_header(cache)
    assert (header.k, header.num_crops, header.num_images) == (4, 2, NUM_IMAGES)
    assert (cache / TARGETS).stat().st_size == 128 + NUM_IMAGES * 2 * 16 * 9 * 2
    assert (cache / HEADER).stat().st_size < 2000
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert stopped.value.code == 2 and 'not empty' in capsys.readouterr().err


def test_tool_prints_help_and_usage_errors_at_once():
    for words, status in ((['--help'], 0), (['config.py'], 2)):
        result = subprocess.run([sys.executable, TOOL, *words], capture_output=True, timeout=5)
        assert result.returncode == status
