"""What the tools do, as functions."""

import json
import os
from pathlib import Path
from typing import Any

from .config import launch
from .engine import resume
from .evaluation.blocks import evaluate_blocks
from .visualization.logs import newest


def evaluate_features(
    checkpoint: str | os.PathLike,
    *,
    data: str | os.PathLike,
    config: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> dict[str, Any]:
    """k-NN and linear-probe accuracy of every block of a pretraining model.

    Args:
        checkpoint: work dir of a pretraining run, a checkpoint, or 'random' for untrained weights.
        data: folder with train/ and val/, each with a folder per class.
        config: default: the one in the work dir.
        out: JSON file to write the result to.
        options: of `evaluate_blocks`.

    Returns:
        `checkpoint` and the result of `evaluate_blocks`.
    """
    file = None if checkpoint == 'random' else resume.find_checkpoint(checkpoint)
    if not config and not Path(checkpoint).is_dir():
        raise ValueError(f'{str(checkpoint)!r} needs a config (--config): only a work dir has one')
    model = launch.load_config(str(config or newest(Path(checkpoint), '*.py'))).model
    result = dict(checkpoint=str(checkpoint), **evaluate_blocks(model, file, data, **options))
    if out:
        Path(out).write_text(json.dumps(result, indent=2) + '\n')
    return result
