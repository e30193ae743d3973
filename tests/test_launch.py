"""Config overrides, early checks, one-line errors."""

import subprocess
import sys
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import HOOKS, VISUALIZERS, init_default_scope
from PIL import Image

from mcbeit_mm import launch, preflight, resume

CONFIG = ROOT / 'configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'


@pytest.fixture
def cfg():
    cfg = Config.fromfile(CONFIG)
    sizes = dict(ddconfig=dict(ch_mult=[1, 1, 2, 4]), n_embed=8192, embed_dim=256)
    cfg.model.target_generator = dict(type='GumbelVQGANTokenizer', **sizes)  # no file to look for
    return cfg


def one_photo(folder):
    folder.mkdir(parents=True)
    Image.new('RGB', (32, 32)).save(folder / 'photo.png')


def test_wrong_path_proposes_a_near_one():
    with pytest.raises(FileNotFoundError, match='did you mean .*coslr-800e_in1k.py'):
        launch.load_config(str(CONFIG).replace('800e', '801e'))


def test_missing_data_folder(cfg, tmp_path):
    cfg.optim_wrapper.type = 'OptimWrapper'
    with pytest.raises(FileNotFoundError, match='MCBEIT_DATA'):
        preflight.check_before_run(cfg)
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    preflight.check_before_run(cfg)
    cfg.load_from = str(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='load_from: no file'):
        preflight.check_before_run(cfg)


def test_folder_without_images(cfg, tmp_path):
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train/notes.txt').touch()
    with pytest.raises(FileNotFoundError, match='no image .* below'):
        preflight.check_before_run(cfg)
    one_photo(tmp_path / 'train/deep')
    preflight.check_before_run(cfg)


def test_testing_asks_for_no_training_data(cfg):
    preflight.check_before_run(cfg, testing=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason='fp16 works on this machine')
def test_fp16_without_gpu_is_refused(cfg, tmp_path):
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    with pytest.raises(ValueError, match='--precision bf16'):
        preflight.check_before_run(cfg)


@pytest.mark.parametrize(
    'precision, kind',
    [('fp32', 'OptimWrapper'), ('fp16', 'AmpOptimWrapper'), ('bf16', 'Bf16OptimWrapper')],
)
def test_precision(cfg, precision, kind):
    cfg.optim_wrapper.loss_scale = 'dynamic'
    launch.set_precision(cfg, precision)
    assert cfg.optim_wrapper.type == kind and 'loss_scale' not in cfg.optim_wrapper


def test_learning_rate_scales_by_the_effective_batch(cfg):
    cfg.optim_wrapper.accumulative_counts = 4
    launch.scale_learning_rate(cfg)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=2048 / 4)
    cfg.pop('auto_scale_lr')
    with pytest.raises(ValueError, match='no auto_scale_lr'):
        launch.scale_learning_rate(cfg)


def test_errors_become_one_line(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop, launch.one_line_errors(ValueError):
        raise ValueError('two\nlines')
    assert stop.value.code == 2
    assert capsys.readouterr().err == 'error: two lines\n'
    with pytest.raises(KeyError), launch.one_line_errors(ValueError):
        raise KeyError('a bug keeps its traceback')
    monkeypatch.setenv('MCBEIT_TRACEBACK', '1')
    with pytest.raises(ValueError), launch.one_line_errors(ValueError):
        raise ValueError('shown in full')


def run(*args, **env):
    import os

    env = dict(os.environ, PYTHONPATH=str(ROOT), **env)
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )


def test_help_is_quick():
    for tool in ('train.py', 'test.py', 'evaluate_features.py', 'make_demo_data.py', 'doctor.py'):
        start = time.perf_counter()
        out = run(f'tools/{tool}', '--help')
        assert out.returncode == 0 and 'usage' in out.stdout
        assert time.perf_counter() - start < 2, tool


@pytest.mark.parametrize(
    'args, text',
    [
        (['tools/train.py', 'configs/nothing.py'], 'no config file configs/nothing.py'),
        (['tools/train.py', str(CONFIG), '--cfg-options', 'model.hed=1'], 'did you mean head'),
        (['tools/train.py', str(CONFIG), '--precision', 'fp32'], 'MCBEIT_DATA'),
        (['tools/test.py', str(CONFIG), 'x.pth'], 'has no test set'),
    ],
)
def test_user_errors_end_in_one_line(args, text):
    out = run(*args)
    assert out.returncode == 2
    assert text in out.stderr and 'Traceback' not in out.stderr
    assert len([line for line in out.stderr.splitlines() if line.startswith('error:')]) == 1


def test_missing_tokenizer_ends_in_one_line(tmp_path):
    one_photo(tmp_path / 'train')
    out = run(
        'tools/train.py', str(CONFIG), '--precision', 'fp32', '--work-dir', str(tmp_path / 'work'),
        MCBEIT_DATA=str(tmp_path), MCBEIT_TOKENIZER=str(tmp_path / 'nowhere'),
    )  # fmt: skip
    assert out.returncode == 2
    assert 'nowhere' in out.stderr.splitlines()[-1] and 'Traceback' not in out.stderr


def test_a_tokenizer_run_of_another_length_than_its_schedules(cfg, tmp_path):
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.model.total_iters, cfg.train_cfg.max_iters = 4000, 500
    with pytest.raises(ValueError, match='model.total_iters=4000.*train_cfg.max_iters=500'):
        preflight.check_before_run(cfg)
    cfg.model.total_iters = 500
    preflight.check_before_run(cfg)


def test_missing_weights_and_lists_are_found_before_the_run(cfg, tmp_path):
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    cfg.optim_wrapper.type = 'OptimWrapper'
    preflight.check_before_run(cfg)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    with pytest.raises(FileNotFoundError, match='no file nowhere.pth; set MCBEIT_WEIGHTS=FILE'):
        preflight.check_before_run(cfg)
    cfg.model.backbone.init_cfg = None
    cfg.train_dataloader.dataset.metainfo = dict(classes=f'{tmp_path}/classes.txt')
    with pytest.raises(FileNotFoundError, match=f'no class list {tmp_path}/classes.txt'):
        preflight.check_before_run(cfg)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('a', 'b'))
    cfg.train_dataloader.dataset.ann_file = 'lists/train.txt'
    with pytest.raises(FileNotFoundError, match=f'no annotation file {tmp_path}/lists/train.txt'):
        preflight.check_before_run(cfg)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg', 'mmdet'])
def test_predictions_are_drawn_by_the_tasks_own_hook(cfg, scope, tmp_path):
    cfg.default_scope = scope
    launch.draw_predictions(cfg, str(tmp_path / 'shown'))
    init_default_scope(scope)
    import_module(f'{scope}.engine.hooks')
    import_module(f'{scope}.visualization')
    visualizer = VISUALIZERS.build(cfg.visualizer)
    hook = HOOKS.build(cfg.default_hooks.visualization)
    assert hook._visualizer is visualizer
    places = [vars(hook), *map(vars, visualizer._vis_backends.values())]
    assert str(tmp_path / 'shown') in str(places)
    cfg.default_scope = 'mmpose'
    with pytest.raises(ValueError, match='not for'):
        launch.draw_predictions(cfg, 'x')


def test_sync_batch_norm_becomes_plain_for_cpu_processes():
    model = dict(neck=dict(norm_cfg=dict(type='SyncBN', eps=1.0)), heads=[dict(type='MMSyncBN')])
    launch._use_plain_batch_norm(model)
    assert model == dict(neck=dict(norm_cfg=dict(type='BN', eps=1.0)), heads=[dict(type='BN')])


def test_a_resumed_run_needs_no_initial_weights(cfg, tmp_path):
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.model.backbone.init_cfg = [dict(type='Pretrained', checkpoint='nowhere.pth')]
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        preflight.check_before_run(cfg)
    cfg.resume = True
    preflight.check_before_run(cfg)
    runner = SimpleNamespace(model=SimpleNamespace(backbone=SimpleNamespace(init_cfg='x')))
    resume.skip_initial_weights(runner)
    assert runner.model.backbone.init_cfg is None


def test_missing_annotations_of_the_evaluator_are_found(cfg, tmp_path):
    one_photo(tmp_path / 'val')
    cfg.val_dataloader = dict(dataset=dict(data_root=str(tmp_path), data_prefix='val'))
    cfg.train_dataloader = None
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.val_evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'val.json'))
    with pytest.raises(FileNotFoundError, match='evaluator: no annotation file .*val.json'):
        preflight.check_before_run(cfg)


def test_several_processes_draw_nothing(cfg, tmp_path):
    cfg.launcher, cfg.default_scope = 'pytorch', 'mmdet'
    with pytest.raises(ValueError, match='draws in one process'):
        launch.draw_predictions(cfg, str(tmp_path))
