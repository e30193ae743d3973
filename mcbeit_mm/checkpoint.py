"""Read, load and rename checkpoints: the public face of `weights`."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import nn

from .layers.rel_pos import Grid
from .weights import fitting
from .weights.names import convert
from .weights.reading import read_checkpoint, state_dict_of

__all__ = ['convert', 'load_weights', 'read_checkpoint', 'state_dict_of']


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    min_match: float = 0.9,
    source_grid: Grid | None = None,
) -> fitting.LoadReport:
    """Load weights of any known naming into a backbone or a model that has one.

    A shared position table is copied to the blocks that want their own, position tables and
    embeddings are resized. A head is loaded where the model has one of the same shape.

    Args:
        source: a path for `read_checkpoint`, or a checkpoint already read.
        min_match: smallest share of the backbone's tensors that must be found; those that start
            fresh by design (`fresh_parameters`) do not count.
        source_grid: patch grid (h, w) of the source, where its tables do not tell.

    Raises:
        SetupError: fewer tensors fit.
        ValueError: unreadable or ambiguous weights, or a table of unknown grid.
    """
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source)
    report = fitting.load_state(model, state_dict_of(checkpoint), min_match, source_grid)
    name = 'weights' if isinstance(source, Mapping) else source
    print_log(f'{name}: {report}', logger='current')
    return report
