"""The config files of the repository, each parsed once per session."""

import copy
import os
from functools import cache
from pathlib import Path
from unittest import mock

from conftest import ROOT
from mmengine.config import Config, utils

CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
_read_index = cache(utils.load)  # with a base in mmdet, Config parses its 102 YAML files


def load(path: str | Path, **variables: str) -> Config:
    """Load a config by its path below configs/, with only these MCBEIT_* variables set."""
    return copy.deepcopy(_load(ROOT / 'configs' / path, tuple(variables.items())))


@cache
def _load(path: Path, variables: tuple[tuple[str, str], ...]) -> Config:
    others = {k: v for k, v in os.environ.items() if not k.startswith('MCBEIT_')}
    with (
        mock.patch.dict(os.environ, others | dict(variables), clear=True),
        mock.patch.object(utils, 'load', _read_index),
    ):
        return Config.fromfile(path)
