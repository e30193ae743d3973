"""Config overrides, early checks, one-line errors."""

import errno
import subprocess
import sys
import time
from importlib import import_module

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import HOOKS, VISUALIZERS, init_default_scope
from PIL import Image

from mcbeit_mm.config import launch

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


def test_several_processes_draw_nothing(cfg, tmp_path):
    cfg.launcher, cfg.default_scope = 'pytorch', 'mmdet'
    with pytest.raises(ValueError, match='draws in one process'):
        launch.draw_predictions(cfg, str(tmp_path))


def test_full_disk_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, launch.one_line_errors(ValueError):
        raise OSError(errno.ENOSPC, 'No space left on device', '/full/scalars.json')
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text == "error: [Errno 28] No space left on device: '/full/scalars.json'\n"
    with pytest.raises(OSError, match='Errno 5'), launch.one_line_errors(ValueError):
        raise OSError(errno.EIO, 'Input/output error')
