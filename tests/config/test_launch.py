"""Reading configs and options, one-line errors, devices, drawing."""

import errno
import sys
from importlib import import_module

import pytest
import torch
from config_files import load
from conftest import ROOT
from mmengine.registry import HOOKS, MODELS, VISUALIZERS, init_default_scope

from mcbeit_mm.config import launch

CONFIG = ROOT / 'configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'


@pytest.fixture
def cfg():
    return load(CONFIG)


def test_wrong_path_suggests_a_similar_one():
    with pytest.raises(FileNotFoundError, match='did you mean .*coslr-800e_in1k.py'):
        launch.load_config(str(CONFIG).replace('800e', '801e'))


def test_custom_imports_that_fail_are_one_line(tmp_path, monkeypatch, capsys):
    """As in a config that an earlier version saved in a work dir."""
    path = tmp_path / 'old.py'
    path.write_text("custom_imports = dict(imports=['mcbeit_mm.detection_precision'])\n")
    with pytest.raises(SystemExit) as stop, launch.one_line_errors(ValueError):
        launch.load_config(str(path))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert error.startswith(f'error: {path}: custom_imports: Failed to import mcbeit_mm.detection_')
    assert "(No module named 'mcbeit_mm.detection_precision'): install the module or" in error

    (tmp_path / 'needs_more.py').write_text('import library_that_is_missing')
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text("custom_imports = dict(imports=['needs_more'])\n")
    with pytest.raises(ValueError, match="import needs_more .No module named 'library_that"):
        launch.load_config(str(path))
    path.write_text(path.read_text().replace("'])", "'], allow_failed_imports=True)"))
    with pytest.warns(UserWarning, match='needs_more failed to import'):
        launch.load_config(str(path))
    path.write_text("custom_imports = ['needs_more']")
    with pytest.raises(ValueError, match='custom_imports: .*must be a mapping'):
        launch.load_config(str(path))


def test_mistakes_in_the_file_are_one_line(tmp_path):
    path = tmp_path / 'own.py'
    for text, message in [
        ("__import__('nowhere')", "own.py: ModuleNotFoundError: No module named 'nowhere'"),
        ('model = dict(', 'own.py: SyntaxError: '),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            launch.load_config(str(path))


def test_custom_imports_are_imported(tmp_path, monkeypatch):
    (tmp_path / 'registers_something.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / 'own.py'
    path.write_text("custom_imports = dict(imports=['registers_something'])\n")
    launch.load_config(str(path))
    assert 'registers_something' in sys.modules


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


@pytest.mark.parametrize(
    'node, text',
    [
        (dict(type='Linear', in_features=1, out=2), "unexpected keyword argument 'out'"),
        (dict(type='Linear', in_features=1), 'missing 1 required positional argument'),
        (dict(type='Linera'), 'Linera is not in the mmengine::model registry'),
    ],
)
def test_what_a_registry_cannot_build_is_one_line(node, text, capsys):
    MODELS.register_module(module=torch.nn.Linear, force=True)
    with pytest.raises(SystemExit) as stop, launch.one_line_errors():
        MODELS.build(node)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and text in error and error.count('\n') == 1


def test_a_bug_while_building_keeps_its_traceback():
    class Buggy(torch.nn.Module):
        def __init__(self):
            len(None)

    MODELS.register_module(module=Buggy, force=True)
    with pytest.raises(TypeError), launch.one_line_errors():
        MODELS.build(dict(type='Buggy'))


@pytest.mark.parametrize(
    'option, value',
    [
        ('model.head.omega=0.5', 0.5),
        ('model.backbone.with_cp=True', True),  # not in the config, but an argument of the class
        ('model.backbone.init_cfg.checkpoint=x.pth', 'x.pth'),
        ('param_scheduler.0.end=20', 20),
        ('train_cfg.val_interval=2', 2),
        ('optim_wrapper.accumulative_counts=4', 4),
        ('optim_wrapper.optimizer.fused=True', True),
        ('find_unused_parameters=True', True),
        ('default_hooks.checkpoint.save_best=None', None),
    ],
)
def test_options_arrive(option, value):
    node = launch.load_config(str(CONFIG), [option])
    for part in option.split('=')[0].split('.'):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == value


def test_misspelled_options_are_refused():
    with pytest.raises(ValueError, match="model.head has no key 'omgea'; did you mean omega"):
        launch.load_config(str(CONFIG), ['model.head.omgea=0.5'])


def test_options_are_parsed():
    with pytest.raises(ValueError, match='takes key=value, got model.head.omega'):
        launch.parse_options(['model.head.omega'])
    parsed = launch.parse_options(['a=[1,2]', 'b=x', 'c=(3,4)'])
    assert parsed == dict(a=[1, 2], b='x', c=(3, 4))


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg', 'mmdet'])
def test_predictions_are_drawn_by_the_tasks_own_hook(cfg, scope, tmp_path):
    cfg.default_scope = scope
    launch.draw_predictions(cfg, str(tmp_path / 'shown'))
    init_default_scope(scope)
    import_module(f'{scope}.engine.hooks')
    import_module(f'{scope}.visualization')
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=str(tmp_path)))
    hook = HOOKS.build(cfg.default_hooks.visualization)
    assert hook._visualizer is visualizer
    places = [vars(hook), *map(vars, visualizer._vis_backends.values())]
    assert str(tmp_path / 'shown') in str(places)
    cfg.default_scope = 'mmpose'
    with pytest.raises(ValueError, match='supports mmpretrain, mmseg, mmdet, not .mmpose'):
        launch.draw_predictions(cfg, 'x')


def test_sync_batch_norm_becomes_plain_for_cpu_processes():
    model = dict(neck=dict(norm_cfg=dict(type='SyncBN', eps=1.0)), heads=[dict(type='MMSyncBN')])
    launch._use_plain_batch_norm(model)
    assert model == dict(neck=dict(norm_cfg=dict(type='BN', eps=1.0)), heads=[dict(type='BN')])


def test_several_processes_draw_nothing(cfg, tmp_path):
    cfg.launcher, cfg.default_scope = 'pytorch', 'mmdet'
    with pytest.raises(ValueError, match='needs a single process'):
        launch.draw_predictions(cfg, str(tmp_path))


def test_full_disk_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, launch.one_line_errors(ValueError):
        raise OSError(errno.ENOSPC, 'No space left on device', '/full/scalars.json')
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text == "error: [Errno 28] No space left on device: '/full/scalars.json'\n"
    with pytest.raises(OSError, match='Errno 5'), launch.one_line_errors(ValueError):
        raise OSError(errno.EIO, 'Input/output error')
