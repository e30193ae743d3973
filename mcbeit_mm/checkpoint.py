"""Read, load and rename checkpoints."""

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
    """Load weights of any known naming into a backbone, or a model that has one.

    Position tables and embeddings are resized; a shared table is copied to blocks with their own.
    A head is loaded if the model has one of the same shape.

    Args:
        source: a path for `read_checkpoint`, or the checkpoint itself.
        min_match: minimum share of the backbone's tensors to find, not counting those initialized
            by design (`fresh_parameters`).
        source_grid: patch grid (h, w) of the source, if it cannot be inferred from the tables.

    Raises:
        SetupError: fewer tensors fit.
        ValueError: unreadable or ambiguous weights, or a table of unknown grid.
    """
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source)
    report = fitting.load_state(model, state_dict_of(checkpoint), min_match, source_grid)
    name = 'weights' if isinstance(source, Mapping) else source
    print_log(f'{name}: {report}', logger='current')
    return report
