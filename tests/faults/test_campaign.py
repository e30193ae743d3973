"""A small fault campaign: real runs killed, resumed and compared bit by bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name('campaign.py')


@pytest.mark.slow
def test_a_small_campaign(tmp_path):
    """In a new process, since forking needs one without threads."""
    numbers = ['--kills', '4', '--corruptions', '40', '--seed', '1']
    command = [sys.executable, str(CAMPAIGN), *numbers, '--out', str(tmp_path / 'out')]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)
    assert out.returncode == 0, out.stdout + out.stderr[-3000:]
    report = json.loads((tmp_path / 'out/report.json').read_text())
    kills = [entry for entry in report['launches'] if entry['fault'].startswith('SIGKILL')]
    assert sum(entry['hit'] for entry in kills) >= 4
    assert report['problems'] == []
    assert report['summary']['silent'] == 0 and report['summary']['files'] == 40
    assert report['disk']['runs'] == 6
