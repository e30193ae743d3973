"""tools/evaluate_features.py on a tiny image folder and a tiny checkpoint."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from PIL import Image

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.evaluation import features as evaluation

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'evaluate_features.py'
CONFIG = """
custom_imports = dict(imports=['mcbeit_mm'])
lr = float('inf')
model = dict(
    type='MCBEiT',
    data_preprocessor=dict(
        type='TwoNormDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        second_mean=[0.0, 0.0, 0.0],
        second_std=[255.0, 255.0, 255.0],
        to_rgb=True,
    ),
    backbone=dict(
        type='MCBEiTViT',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
        img_size=(32, 32),
        patch_size=8,
    ),
    head={'odd key': None, 'embed_dims': 16},
)
"""


@pytest.fixture
def folder(tmp_path):
    """Three classes of stripes: direction and period differ."""
    rng, root = np.random.default_rng(0), tmp_path / 'images'
    for split, num in (('train', 14), ('val', 6)):
        for label in range(3):
            (root / split / f'class {label}').mkdir(parents=True)
            for i in range(num):
                waves = np.sin(np.arange(40) * (0.4 + 0.25 * label) + rng.uniform(0, 6))
                image = 128 + 60 * waves[None, :, None] + rng.normal(0, 40, (40, 40, 3))
                image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
                image.save(root / split / f'class {label}' / f'{i}.png')
    return root


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return path


def make_checkpoint(path, config, **changes):
    """A file as Runner.save_checkpoint writes it, NumPy and MMEngine objects included."""
    cfg = Config.fromfile(config)
    torch.manual_seed(7)
    backbone = MCBEiTViT(**{k: v for k, v in cfg.model.backbone.items() if k != 'type'})
    with torch.no_grad():
        for param in backbone.parameters():
            param.normal_(std=0.3)
    state_dict = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    state_dict |= {
        'head.lm_head.weight': torch.zeros(8, 16),
        'backbone.blocks.0.attn.relative_position_index': torch.zeros(17, 17),
    }
    checkpoint = dict(
        meta=dict(epoch=1, cfg=cfg.pretty_text, seed=np.int64(0)),
        state_dict={k: v for k, v in state_dict.items() if k not in changes.get('without', ())},
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))),
    )
    checkpoint.update(changes.get('entries', {}))
    torch.save(checkpoint, path)
    return backbone


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('evaluate_features', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tool, monkeypatch, capsys):
    """Run the tool in this process: (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['evaluate_features.py', *map(str, args)])
        code = 0
        try:
            tool.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    monkeypatch.delenv('MCBEIT_DATA', raising=False)
    monkeypatch.delenv('MCBEIT_TRACEBACK', raising=False)
    return run


def run_tool(*args, **env):
    command = [sys.executable, str(TOOL), *map(str, args)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': '', **env}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT.parent)


def test_scores_equal_the_library_and_the_table(tmp_path, folder, config):
    backbone = make_checkpoint(tmp_path / 'epoch_1.pth', config)
    out = tmp_path / 'scores.json'
    options = ['--random-init', '--k', 5, '--num-workers', 0, '--batch-size', 8, '--out', out]
    done = run_tool(tmp_path / 'epoch_1.pth', *options, MCBEIT_DATA=str(folder))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result['data'] == dict(root=str(folder), train=42, val=18, classes=3)

    preprocessor = Config.fromfile(config).model.data_preprocessor
    datasets = evaluation.folder_datasets(folder, 32, preprocessor.mean, preprocessor.std)
    loaders = [evaluation.ordered_loader(d, batch_size=8, num_workers=0) for d in datasets]
    parts = [evaluation.extract_features(backbone, loader, 'cpu') for loader in loaders]
    expected = evaluation.score_layers(*parts, k=5, device='cpu')
    model = result['models']['checkpoint']
    assert list(model['blocks']) == ['0', '1']
    for block, scores in enumerate(expected):
        assert model['blocks'][str(block)] == pytest.approx(scores, abs=1e-9)
    for method in ('knn', 'linear'):
        held_out = [scores[f'{method}_held_out'] for scores in expected]
        assert model['chosen'][method] == int(np.argmax(held_out))
    untrained = result['models']['random init']['blocks']
    assert untrained != model['blocks']

    table = [line for line in done.stdout.split('\n') if line.startswith('|')]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    assert rows[0][1:] == [
        f'{method} ({name})'
        for name in ('checkpoint', 'random init')
        for method in ('k-NN', 'linear probe')
    ]
    for block in ('0', '1'):
        scores = [
            m[block][method] for m in (model['blocks'], untrained) for method in ('knn', 'linear')
        ]
        assert rows[2 + int(block)] == [block, *(f'{score:.2f}' for score in scores)]
    choice = model['chosen']['knn']
    assert rows[4][1] == f'{model["blocks"][str(choice)]["knn"]:.2f} (block {choice})'


def test_an_error_is_one_line(tmp_path, folder):
    done = run_tool(tmp_path / 'none.pth', '--data', folder)
    assert done.returncode == 2
    assert done.stderr.strip().split('\n')[-1].startswith('error: no checkpoint ')
    assert 'Traceback' not in done.stderr and '| block' not in done.stdout


def test_random_weights_and_one_layer(tmp_path, folder, config, call):
    out = tmp_path / 'scores.json'
    common = ['random', '--config', config, '--data', folder, '--num-workers', 0, '--k', 5]
    code, text, _ = call(*common, '--layer', 'last', '--out', out)
    assert code == 0
    last = json.loads(out.read_text())['models']
    assert list(last) == ['random init']
    assert list(last['random init']['blocks']) == ['1']
    assert '42 for training; k = 5' in text
    call(*common, '--layer', 1, '--out', out)
    assert json.loads(out.read_text())['models'] == last


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(without=['backbone.norm.bias', 'backbone.cls_token']),
            r'2 tensors missing, 0 unexpected\): missing cls_token, missing norm.bias',
        ),
        (dict(entries=dict(meta={})), 'holds no readable config of a model: give one by --config'),
        (
            dict(entries=dict(meta=dict(cfg="model = dict(backbone=print('ran'))"))),
            'holds no readable config of a model',
        ),
        (
            dict(entries=dict(state_dict={'cls_token': torch.zeros(1)})),
            r"no backbone.\* tensors in the checkpoint, which has \['cls_token'\]",
        ),
    ],
)
def test_unfit_checkpoints(tmp_path, folder, config, call, changes, message):
    make_checkpoint(tmp_path / 'bad.pth', config, **changes)
    code, out, err = call(tmp_path / 'bad.pth', '--data', folder, '--num-workers', 0)
    assert (code, out) == (2, '')
    (line,) = [line for line in err.split('\n') if line.startswith('error: ')]
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


def test_a_config_that_does_not_fit(tmp_path, folder, config, call):
    make_checkpoint(tmp_path / 'epoch_1.pth', config)
    config.write_text(CONFIG.replace('feedforward_channels=32', 'feedforward_channels=64'))
    code, _, err = call(tmp_path / 'epoch_1.pth', '--data', folder, '--config', config)
    assert code == 2
    line = err.split('error: ')[1].split('\n')[0]
    assert 'only 82% of the backbone' in line
    assert 'blocks.0.mlp.fc1.weight (32, 16), expected (64, 16)' in line


@pytest.mark.parametrize(
    'args, message',
    [
        (['random', '--config', 'CONFIG'], 'no image folder: give --data ROOT or set MCBEIT_DATA'),
        (['random', '--data', 'x'], "'random' needs --config"),
        (['random', '--config', 'tiny.py', '--data', 'x'], 'no config file tiny.py'),
        (['random', '--config', 'CONFIG', '--data', 'x'], 'no folder x/train'),
        (['random', '--config', 'CONFIG', '--data', 'FOLDER', '--layer', '2'], r'layers [2] lie'),
        (['random', '--config', 'CONFIG', '--data', 'FOLDER', '--img-size', '33'], '33x33 pixels'),
        (['random', '--config', 'CONFIG', '--data', 'FOLDER', '--k', '43'], 'in [1, 42]'),
    ],
)
def test_mistakes(folder, config, call, args, message):
    places = dict(CONFIG=config, FOLDER=folder)
    code, out, err = call(*(places.get(arg, arg) for arg in args), '--num-workers', 0)
    assert (code, out) == (2, '')
    (line,) = [line for line in err.split('\n') if line.startswith('error: ')]
    assert message in line
