"""Both views are normalized; masks and cached records are not touched."""

import torch
from mmpretrain.models.utils import TwoNormDataPreprocessor
from mmpretrain.structures import DataSample

from mcbeit_mm.layers.preprocessor import TwoViewDataPreprocessor

SETTINGS = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
    second_mean=[0.0] * 3, second_std=[255.0] * 3, to_rgb=True,
)  # fmt: skip


def batch():
    views = [torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8) for side in (32, 16)]
    samples = [DataSample(mask=torch.rand(2, 2) < 0.5) for _ in range(2)]
    return dict(inputs=views, data_samples=samples)


def test_views_equal_those_of_mmpretrain():
    data = batch()
    got = TwoViewDataPreprocessor(**SETTINGS)(data)
    expected = TwoNormDataPreprocessor(**SETTINGS)(data)
    for a, b in zip(got['inputs'], expected['inputs'], strict=True):
        assert torch.equal(a, b)


def test_views_move_as_bytes_and_samples_stay():
    """The meta device shows which tensors move, and their types."""
    preprocessor = TwoViewDataPreprocessor(**SETTINGS).to('meta')
    data = batch()
    views, samples = preprocessor.cast_data(list(data.values()))
    assert [(x.device.type, x.dtype) for x in views] == [('meta', torch.uint8)] * 2
    assert samples == data['data_samples'] and samples[0].mask.device.type == 'cpu'


def test_cached_records_keep_their_values():
    data = batch()
    expected = TwoViewDataPreprocessor(**SETTINGS)(data)['inputs'][0]
    records = torch.randint(-(2**15), 2**15, (2, 4, 9), dtype=torch.int16)
    got = TwoViewDataPreprocessor(**SETTINGS)(dict(data, inputs=[data['inputs'][0], records]))
    assert torch.equal(got['inputs'][0], expected)
    assert torch.equal(got['inputs'][1], records) and got['inputs'][1].dtype == torch.int16
    assert got['data_samples'][0] is data['data_samples'][0]
