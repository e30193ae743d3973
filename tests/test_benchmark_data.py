"""The data benchmark: all sides draw the same views, and its figures are of what it says."""

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


def test_every_side_of_every_case_runs(data):
    cases = data.cases('cpu', quick=True)
    assert [case.goal for case in cases] == [0.5, None, None]
    threads = torch.get_num_threads()
    for case in cases:
        for side in case.sides:
            run = case.build(side, 'cpu', **case.settings)
            assert len(run()) in (case.items, 2, 3)  # samples, or the parts of a batch
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
    same_order = [fact for fact in facts if 'rows before columns' in fact.how]
    assert len(same_order) == 4
    for fact in same_order:
        assert 0 <= fact.value <= (2 if 'largest' in fact.name else 0.02)
