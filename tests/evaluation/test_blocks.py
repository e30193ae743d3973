"""Scores of a checkpoint's blocks against the functions behind them."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny_features import CONFIG, make_checkpoint, write_stripes

from mcbeit_mm.evaluation import features
from mcbeit_mm.evaluation.blocks import as_markdown, build_backbone, evaluate_blocks

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
    model = Config.fromfile(config).model
    result = evaluate_blocks(model, tmp_path / 'epoch_1.pth', folder, random_init=True, **QUICK)
    assert result['data'] == dict(root=str(folder), train=42, val=18, classes=3)

    views = model.data_preprocessor
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

    table = as_markdown(result['models']).split('\n')
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


METHODS = ('knn', 'linear')


def test_random_weights_and_one_layer(folder, config):
    model = Config.fromfile(config).model
    last, second = (
        evaluate_blocks(model, None, folder, layers=[i], **QUICK)['models'] for i in (-1, 1)
    )
    assert last == second and list(last) == ['random init']
    assert list(last['random init']['blocks']) == [1]


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(without=['backbone.norm.bias', 'backbone.cls_token']),
            r'the weights do not fit the config: .*Missing.*"cls_token", .*"norm.bias"',
        ),
        (
            dict(entries=dict(state_dict={'cls_token': torch.zeros(1)})),
            r"has no backbone.\* tensors, got \['cls_token'\]",
        ),
    ],
)
def test_unfit_checkpoints(tmp_path, folder, config, changes, message):
    make_checkpoint(tmp_path / 'bad.pth', config, **changes)
    model = Config.fromfile(config).model
    with pytest.raises(ValueError, match=f'(?s){message}'):
        evaluate_blocks(model, tmp_path / 'bad.pth', folder, **QUICK)


def test_a_config_that_does_not_fit(tmp_path, folder, config):
    make_checkpoint(tmp_path / 'epoch_1.pth', config)
    model = Config.fromfile(config).model
    model.backbone.arch.feedforward_channels = 64
    with pytest.raises(ValueError, match='only 82% of the backbone') as error:
        evaluate_blocks(model, tmp_path / 'epoch_1.pth', folder, **QUICK)
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
        evaluate_blocks(Config.fromfile(config).model, None, folder, **(QUICK | options))


def test_other_models_are_refused(folder):
    with pytest.raises(ValueError, match='has no backbone'):
        evaluate_blocks(dict(type='GumbelVQGANTrainer'), None, folder)
    with pytest.raises(ValueError, match='expected the backbone MCBEiTViT, got ResNet'):
        build_backbone(dict(type='ResNet'), None)
