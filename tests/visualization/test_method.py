"""The picture of the method shows what the model computes."""

import numpy as np
import pytest
import torch
from tiny_models import batch, tiny

from mcbeit_mm.visualization import targets
from mcbeit_mm.visualization.method import method_figure


def test_panels_hold_the_values_of_the_model():
    model = tiny()
    inputs, samples = batch()
    mask = torch.stack([sample.mask for sample in samples])
    figure = method_figure(model, inputs, mask, image=1, top=4)
    image, masked, decoded, *bars = figure.axes
    shown = targets.predict(model, [view[1:] for view in inputs], mask[1:])
    pictures = targets.reconstructions(model.tokenizer, shown)
    np.testing.assert_array_equal(image.images[0].get_array(), pictures['original'][0])
    np.testing.assert_array_equal(decoded.images[0].get_array(), pictures['student, average'][0])
    np.testing.assert_array_equal(masked.images[1].get_array()[..., 3] > 0, mask[1].numpy())
    patches = targets.select_patches(shown, 0)[::2]
    choices = targets.multi_choice(model, shown, 0, patches, top=4)
    assert len(bars) == len(choices) == 2
    for axes, choice, outline in zip(bars, choices, masked.patches, strict=True):
        before, after = axes.containers
        np.testing.assert_array_equal([bar.get_height() for bar in before], choice.before)
        np.testing.assert_array_equal([bar.get_height() for bar in after], choice.after)
        row, column = choice.patch
        assert outline.get_xy() == (column - 0.5, row - 0.5) and mask[1, row, column]


def test_a_tokenizer_without_decoder_is_refused(monkeypatch):
    model = tiny()
    inputs, samples = batch()

    def refuse(tokens):
        raise ValueError('no decoder')

    monkeypatch.setattr(model.tokenizer, 'decode', refuse)
    with pytest.raises(ValueError, match='no decoder'):
        method_figure(model, inputs, torch.stack([sample.mask for sample in samples]))
