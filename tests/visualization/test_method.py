"""The picture of the method shows what the model computes."""

import numpy as np
import torch
from tiny_models import batch, tiny

from mcbeit_mm.visualization import targets
from mcbeit_mm.visualization.method import method_figure


def parts(figure):
    """Axes of image, mask, reconstruction, bars and affinities."""
    image, masked, decoded, *rest = figure.axes
    return image, masked, decoded, rest[::2], rest[1::2]


def test_panels_hold_the_values_of_the_model():
    model = tiny()
    inputs, samples = batch()
    mask = torch.stack([sample.mask for sample in samples])
    image, masked, decoded, bars, maps = parts(method_figure(model, inputs, mask, image=1, top=4))
    shown = targets.predict(model, [view[1:] for view in inputs], mask[1:])
    pictures = targets.reconstructions(model.tokenizer, shown)
    np.testing.assert_array_equal(image.images[0].get_array(), pictures['original'][0])
    np.testing.assert_array_equal(decoded.images[0].get_array(), pictures['student'][0])
    np.testing.assert_array_equal(masked.images[1].get_array()[..., 3] > 0, mask[1].numpy())
    patches = targets.select_patches(shown, 0, count=2)
    choices = targets.multi_choice(model, shown, 0, patches, top=4)
    assert len(bars) == len(maps) == len(choices) == 2
    rows = zip(bars, maps, choices, masked.patches, decoded.patches, strict=True)
    for axes, heat, choice, *outlines in rows:
        before, after = axes.containers
        np.testing.assert_array_equal([bar.get_height() for bar in before], choice.before)
        np.testing.assert_array_equal([bar.get_height() for bar in after], choice.after)
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), choice.predicted)
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == [str(code) for code in choice.codes]
        assert sum('AnnotationBbox' in type(artist).__name__ for artist in axes.artists) == 4
        np.testing.assert_array_equal(heat.images[0].get_array(), choice.affinity)
        row, column = choice.patch
        for outline in (*outlines, *heat.patches):
            assert outline.get_xy() == (column - 0.5, row - 0.5) and mask[1, row, column]


def test_without_a_decoder_there_are_the_targets_only(monkeypatch):
    model = tiny()
    inputs, samples = batch()

    def refuse(tokens):
        raise ValueError('no decoder')

    monkeypatch.setattr(model.tokenizer, 'decode', refuse)
    mask = torch.stack([sample.mask for sample in samples])
    _, masked, decoded, bars, maps = parts(method_figure(model, inputs, mask))
    assert not decoded.images and not decoded.axison
    assert len(masked.patches) == len(maps) == 2
    for axes in bars:
        assert axes.containers and not axes.artists
