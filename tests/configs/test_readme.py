"""configs/README.md lists every config in the table of its folder, and nothing else."""

import re
import shlex

import pytest
from config_files import CONFIGS
from conftest import ROOT

from mcbeit_mm.config.launch import load_config

README = (ROOT / 'configs/README.md').read_text()
FOLDERS = sorted({path.parent.name for path in CONFIGS})
BASE = 'configs/pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'


def rows_of(folder):
    """First cells of the table in the folder's section, without the header."""
    section = re.search(rf'\(`configs/{folder}/`\)\n(.*?)(?=\n##|\Z)', README, re.S)[1]
    return re.findall(r'^\| `([\w.-]+)` \| \S', section, re.M)


def test_every_folder_has_a_section():
    assert sorted(re.findall(r'^##+ .*\(`configs/(\w+)/`\)$', README, re.M)) == FOLDERS


@pytest.mark.parametrize('folder', FOLDERS)
def test_tables_list_the_files(folder):
    rows = rows_of(folder)
    assert sorted(rows) == sorted(path.stem for path in CONFIGS if path.parent.name == folder)


def test_tables_of_transfer_have_a_memory_for_each_config():
    for folder in ('classification', 'segmentation', 'detection'):
        for name in rows_of(folder):
            (row,) = re.findall(rf'^\| `{re.escape(name)}` .*$', README, re.M)
            assert re.search(r'\| [\d.]+ \|$', row), row


def test_commands_for_variants():
    """Overrides exist, and those for 8 GPUs keep the batch of the learning rate."""
    commands = re.findall(r'`[^`]*?(?:CONFIG|\.\.\.)([^`]*--cfg-options[^`]*)`', README)
    assert len(commands) == 4
    for command in commands:
        gpus, _, options = command.strip().partition('--cfg-options')
        cfg = load_config(str(ROOT / BASE), shlex.split(options))
        if gpus:
            images = int(gpus) * cfg.train_dataloader.batch_size
            accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
            assert images * accumulated == cfg.auto_scale_lr.base_batch_size
