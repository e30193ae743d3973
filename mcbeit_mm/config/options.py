"""Overrides from the command line: a misspelt key is refused with a proposal."""

import argparse
import difflib
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict, DictAction

from .checks.keys import RUNNER_ARGUMENTS, arguments_of


def parse_options(options: Sequence[str]) -> dict:
    """Parse `key=value` words as OpenMMLab's --cfg-options does."""
    wrong = [option for option in options if '=' not in option]
    if wrong:
        raise ValueError(f'--cfg-options takes key=value, got {" ".join(wrong)}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    return parser.parse_args(['--options', *options]).options or {}


def check_option(cfg: Config, key: str) -> None:
    """ValueError unless the config has the dotted key or the class it goes to takes it."""
    node, walked = cfg, []
    for part in key.split('.'):
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(
                    f'--cfg-options {key}: {".".join(walked)} has {len(node)} entries, no {part!r}'
                )
            node = node[int(part)]
        elif isinstance(node, Config | ConfigDict | dict) and part in node:
            node = node[part]
        else:
            known = list(node) if isinstance(node, Config | ConfigDict | dict) else []
            scope = cfg.get('default_scope')
            arguments = arguments_of(node, scope) if walked else RUNNER_ARGUMENTS
            if not isinstance(node, Config | ConfigDict | dict):
                place = '.'.join(walked)
                raise ValueError(
                    f'--cfg-options {key}: {place} is {node!r} and has no key {part!r}'
                )
            if arguments is not None and (part in arguments or '**' in arguments):
                return
            near = difflib.get_close_matches(part, known + list(arguments or ()), n=3)
            place = '.'.join(walked) or 'the config'
            hint = f'; did you mean {", ".join(near)}?' if near else f'; it has {", ".join(known)}'
            raise ValueError(f'--cfg-options {key}: {place} has no key {part!r}{hint}')
        walked.append(part)
