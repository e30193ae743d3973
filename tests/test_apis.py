"""Scores of a checkpoint's blocks against the functions behind them; refused models."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny_features import CONFIG, make_checkpoint, write_stripes

from mcbeit_mm.apis import evaluate_features
from mcbeit_mm.checkpoint import convert
from mcbeit_mm.evaluation import features
from mcbeit_mm.evaluation.blocks import as_markdown, build_backbone

METHODS = ('knn', 'linear')
QUICK = dict(num_workers=0, k=5, device='cpu', batch_size=8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(CONFIG)
    return path


def test_scores_equal_the_library_and_the_table(tmp_path, folder, config):
    backbone = make_checkpoint(tmp_path / 'epoch_1.pth', config)
    (tmp_path / 'run.py').write_text(CONFIG)
    result = evaluate_features(tmp_path, data=folder, random_init=True, **QUICK)
    views = Config.fromfile(config).model.data_preprocessor
    assert result['data'] == dict(root=str(folder), train=42, val=18, classes=3)

    datasets = features.folder_datasets(folder, 32, views.mean, views.std)
    loaders = [features.ordered_loader(d, batch_size=8, num_workers=0) for d in datasets]
    parts = [features.extract_features(backbone, loader, 'cpu') for loader in loaders]
    expected = features.score_layers(*parts, k=5, device='cpu')
    found = result['models']['checkpoint']
    assert list(found['blocks']) == [0, 1]
    for block, scores in enumerate(expected):
        assert found['blocks'][block] == pytest.approx(scores, abs=1e-9)
    for method in ('knn', 'linear'):
        held_out = [scores[f'{method}_held_out'] for scores in expected]
        assert found['chosen'][method] == int(np.argmax(held_out))
    untrained = result['models']['random init']['blocks']
    assert untrained != found['blocks']

    table, _, note = as_markdown(result).rpartition('\n\n')
    assert note.startswith('Top-1 in % on 18 images of 3 classes, 42 for training; k = 5.')
    table = table.split('\n')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    assert rows[0][1:] == [
        f'{method} ({name})'
        for name in ('checkpoint', 'random init')
        for method in ('k-NN', 'linear probe')
    ]
    for block in (0, 1):
        scores = [m[block][method] for m in (found['blocks'], untrained) for method in METHODS]
        assert rows[2 + block] == [str(block), *(f'{score:.2f}' for score in scores)]
    choice = found['chosen']['knn']
    assert rows[4][1] == f'{found["blocks"][choice]["knn"]:.2f} (block {choice})'


def test_random_weights_and_one_layer(folder, config):
    options = dict(data=folder, config=config, **QUICK)
    last, second = (evaluate_features('random', layers=[i], **options)['models'] for i in (-1, 1))
    assert last == second and list(last) == ['random init']
    assert list(last['random init']['blocks']) == [1]


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(without=['backbone.norm.bias', 'backbone.cls_token']),
            'only 97% of the backbone .*expected at least 100%.*1 missing: cls_token; .*norm.bias',
        ),
        (
            dict(without=['backbone.norm.bias']),
            '36 of 37 .*1 fresh: norm.bias; .*expected all tensors of the backbone',
        ),
        (
            dict(entries=dict(state_dict={'cls_token': torch.zeros(1)})),
            r'only 0% of the backbone',
        ),
    ],
)
def test_unfit_checkpoints(tmp_path, folder, config, changes, message):
    make_checkpoint(tmp_path / 'bad.pth', config, **changes)
    with pytest.raises(ValueError, match=f'(?s){message}'):
        evaluate_features(tmp_path / 'bad.pth', data=folder, config=config, **QUICK)


def test_a_config_that_does_not_fit(tmp_path, folder, config):
    make_checkpoint(tmp_path / 'epoch_1.pth', config)
    (tmp_path / 'wider.py').write_text(CONFIG.replace('channels=32', 'channels=64'))
    with pytest.raises(ValueError, match='only 82% of the backbone') as error:
        evaluate_features(tmp_path, data=folder, **QUICK)
    assert 'blocks.0.mlp.fc1.weight (32, 16), expected (64, 16)' in str(error.value)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(layers=[2]), r'layers \[2\] are not among'),
        (dict(img_size=33), '33x33 pixels'),
        (dict(k=43), r'in \[1, 42\]'),
    ],
)
def test_options_out_of_range(folder, config, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_features('random', data=folder, config=config, **(QUICK | options))


def test_other_models_are_refused(tmp_path, folder):
    models = dict(
        tokenizer="type='GumbelVQGANTrainer'", resnet="type='A', backbone=dict(type='ResNet')"
    )
    messages = dict(tokenizer='GumbelVQGANTrainer with None', resnet='A with ResNet')
    for name, model in models.items():
        (tmp_path / f'{name}.py').write_text(f'model = dict({model})')
        with pytest.raises(ValueError, match=f'expected a model .*got {messages[name]}'):
            evaluate_features('random', data=folder, config=tmp_path / f'{name}.py')
    no_statistics = "type='MCBEiT', backbone=dict(type='MCBEiTViT')"
    (tmp_path / 'bare.py').write_text(f'model = dict({no_statistics})')
    with pytest.raises(ValueError, match='no model.data_preprocessor'):
        evaluate_features('random', data=folder, config=tmp_path / 'bare.py')


def test_a_work_dir_below_home(tmp_path, folder, config, monkeypatch):
    (tmp_path / 'run').mkdir()
    make_checkpoint(tmp_path / 'run/epoch_1.pth', config)
    (tmp_path / 'run/run.py').write_text(CONFIG)
    monkeypatch.setenv('HOME', str(tmp_path))
    result = evaluate_features('~/run', data=folder, layers=[-1], **QUICK)
    assert list(result['models']['checkpoint']['blocks']) == [1]


def test_a_bare_backbone_of_other_names_is_measured(tmp_path, config):
    backbone = make_checkpoint(tmp_path / 'epoch_1.pth', config)
    torch.save(convert(backbone.state_dict(), to='hf'), tmp_path / 'hf.pth')
    built = build_backbone(Config.fromfile(config).model.backbone, tmp_path / 'hf.pth')
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor), name
