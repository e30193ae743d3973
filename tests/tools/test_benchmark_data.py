"""The data benchmark: all sides draw the same views, and figures measure what their names say."""

import importlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return importlib.import_module('benchmarks.data')


def test_every_side_of_every_case_runs(data, monkeypatch):
    monkeypatch.setattr(data, 'LARGE', 3)
    cases = data.cases('cpu', quick=True)
    assert [case.goal for case in cases] == [0.5, None]
    threads = torch.get_num_threads()
    for case in cases:
        for side in case.sides:
            batch = case.build(side, 'cpu', **case.settings)()
            views = batch[:2] if side == 'plain' else batch['inputs']
            assert [len(view) for view in views] == [case.items] * 2, side
    assert torch.get_num_threads() == threads


def test_sides_give_the_same_batch(data):
    case = data.cases('cpu', quick=True)[0]
    student, view, mask = case.build('plain', 'cpu', **case.settings)()
    pipeline = case.build('OpenMMLab', 'cpu', **case.settings)()
    for got, expected in zip(pipeline['inputs'], (student, view), strict=True):
        assert torch.equal(got.flip(1), expected)
    ours = case.build('ours', 'cpu', **case.settings)()
    assert student.shape == (4, 3, 224, 224) and view.shape == (4, 3, 112, 112)
    inputs = [tensor.flip(1) for tensor in ours['inputs']]  # to RGB
    for got, expected in zip(inputs, (student, view), strict=True):
        gaps = (got.int() - expected.int()).abs().float()
        # Pillow 13 takes the columns of some crops first
        assert gaps.mean() < 0.2 and gaps.max() <= 30
    assert torch.equal(torch.stack([sample.mask for sample in ours['data_samples']]), mask)


def test_photos_are_what_the_title_says(data):
    paths = data.photo_paths(data.photo_folder(4))
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as photo:
            assert (photo.format, photo.size) == ('JPEG', (500, 375))
            assert np.asarray(photo).std() > 20  # not empty


def test_large_photos_are_mosaics_of_pieces_that_were_not_resized(data):
    case = data.cases('cpu', quick=False)[1]
    assert '12-megapixel' in case.name and case.sides[-1] == 'ours, scaled'
    assert (500 * case.settings['tiles'], 375 * case.settings['tiles']) == (4000, 3000)
    (path,) = data.photo_paths(data.photo_folder(1, 2))
    pieces = data.photo_paths(data.photo_folder(4))
    with Image.open(path) as photo:
        assert photo.size == (1000, 750)
        for number, piece in enumerate(pieces):
            left, top = 500 * (number % 2), 375 * (number // 2)
            got = np.asarray(photo.crop((left, top, left + 500, top + 375))).astype(int)
            assert np.abs(got - np.asarray(Image.open(piece))).mean() < 5  # other blocks


def test_scaled_side_decodes_fewer_pixels(data):
    case = data.cases('cpu', quick=True)[1]
    folder = data.photo_folder(**case.settings)
    for side, size in (('ours', (3000, 4000, 3)), ('ours, scaled', (1500, 2000, 3))):
        load = data.dataset_of(side, folder).dataset.pipeline.transforms[0]
        assert load(dict(img_path=str(data.photo_paths(folder)[0])))['img'].shape == size
