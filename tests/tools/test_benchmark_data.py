"""The data benchmark: all sides draw the same views, and its figures are what they are called."""

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
    assert [case.goal for case in cases] == [0.5, None, None, None, None]
    threads = torch.get_num_threads()
    for case in cases:
        for side in case.sides:
            run = case.build(side, 'cpu', **case.settings)
            assert len(run()) in (case.items, 2, 3), side  # samples, or the parts of a batch
    assert torch.get_num_threads() == threads


def test_sides_give_the_same_batch(data):
    case = data.cases('cpu', quick=True)[0]
    batches = {side: case.build(side, 'cpu', **case.settings)() for side in case.sides}
    student, view, mask = batches['bare Pillow']
    assert student.shape == (4, 3, 224, 224) and view.shape == (4, 3, 112, 112)
    mean, std = torch.tensor(data.MEAN), torch.tensor(data.STD)
    floats = batches['torchvision']
    pixels = (floats[0] * std[:, None, None] + mean[:, None, None]) * 255
    torch.testing.assert_close(pixels, student.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(floats[1] * 255, view.float(), atol=1e-3, rtol=0)
    assert torch.equal(floats[2], mask)
    for side in ('plain', 'ours'):
        inputs = [tensor.flip(1) for tensor in batches[side]['inputs']]  # to RGB
        for got, expected in zip(inputs, (student, view), strict=True):
            gaps = (got.int() - expected.int()).abs().float()
            # Pillow 13 takes the columns of some crops first
            assert gaps.mean() < 0.2 and gaps.max() <= 30
        masks = [sample.mask for sample in batches[side]['data_samples']]
        assert torch.equal(torch.stack(masks), mask)


def test_photos_are_what_the_title_says(data):
    paths = data.photo_paths(data.photo_folder(4))
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as photo:
            assert (photo.format, photo.size) == ('JPEG', (500, 375))
            assert np.asarray(photo).std() > 20  # not empty


def test_facts(data):
    facts = data.facts('cpu', quick=True)
    near = [fact for fact in facts if 'rows before columns' in fact.how]
    assert len(near) == 2
    for fact in near:
        mean, largest = fact.value.removeprefix('mean ').split(', largest ')
        assert float(mean) <= 0.02 and int(largest) <= 2
    scaled = [fact for fact in facts if 'scaled decoding' in fact.name]
    assert [fact.how.split(', ')[0] for fact in scaled[:4]] == (
        ['crops as drawn'] * 2 + ['smallest crops'] * 2
    )
    assert ['1/2' in fact.how for fact in scaled] == [True] * 4 + [False] * 4


def test_large_photos_are_mosaics_of_pieces_that_were_not_resized(data):
    case = data.cases('cpu', quick=False)[3]
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


def test_scaled_sides_decode_fewer_pixels(data):
    case = data.cases('cpu', quick=True)[4]
    found = [case.build(side, 'cpu', **case.settings)() for side in case.sides]
    assert found == [[(4000, 3000)], [(3000, 4000, 3)], [(1500, 2000, 3)], [(750, 1000, 3)]]


def test_differences_are_of_the_same_crops(data):
    module, folder = importlib.import_module('benchmarks.differences'), data.photo_folder(1, 6)
    gaps_of = module.scaled_gaps
    divisor, views = gaps_of(folder, 3, 10**7, 64, (0.2, 1.0))
    assert divisor == 1 and list(views) == ['64, bicubic', '32, Lanczos']
    assert [gaps.shape for gaps in views.values()] == [(3, 64, 64, 3), (3, 32, 32, 3)]
    assert not any(gaps.any() for gaps in views.values())  # nothing was scaled
    divisor, views = gaps_of(folder, 3, 10**6, 64, (0.2, 1.0))
    assert divisor == 2
    assert 0 < views['64, bicubic'].mean() < 0.5  # crops of other places: 30 and more
    fact = module.summary('gaps', np.array([[0, 2]]), 'two pixels')
    assert fact == ('data, gaps', 'mean 1, largest 2', 'levels, PSNR 45.1 dB', 'two pixels')
