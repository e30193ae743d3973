"""Steps of an ablation are executed, resumed and reported."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from small_ablation import finish, planned, write_configs
from tiny_models import DDCONFIG
from tiny_train import CONFIG

from mcbeit_mm.ablation import run as ablation
from mcbeit_mm.ablation.run import Steps
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer


@pytest.fixture
def folder(tmp_path):
    return write_configs(tmp_path)


def test_commands(folder):
    run = planned(folder, pattern='baseline.py')[0]
    steps = Steps('D', max_train=9, bf16=True, precision='fp32')
    train = steps.command('train', run)
    assert train[1:] == [
        f'{ROOT}/tools/train.py', str(run.config), '--work-dir', str(run.folder),
        '--resume', '--precision', 'fp32', '--cfg-options',
        'train_dataloader.dataset.data_prefix=train', 'randomness.seed=0',
    ]  # fmt: skip
    several = Steps('D', gpus=2).command('train', run)
    assert several[:4] == ['bash', f'{ROOT}/tools/dist_train.sh', str(run.config), '2']
    assert '--precision' not in several
    transfer = replace(run, folder=run.folder / 'finetune', options=('a=1',))
    finetune = steps.command('finetune', replace(run, finetune=transfer))
    assert finetune == steps.command('train', transfer) and finetune[-1] == 'a=1'
    evaluate = steps.command('evaluate', run)
    features = f'{run.folder}/features.json'
    words = ['--data', 'D', '--out', features, '--max-train', '9', '--bf16']
    assert evaluate[2:] == [str(run.folder), *words]


def test_the_environment_of_configs(folder, monkeypatch):
    for name in ('MCBEIT_DATA', 'MCBEIT_CLASSES'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match='no image folder: use --data'):
        ablation.set_data(None)
    with pytest.raises(FileNotFoundError, match='no folder .*train: ROOT needs'):
        ablation.set_data(str(folder / 'data'))
    for name in ('train/a', 'train/b', 'train/.cache', 'val'):
        (folder / 'data' / name).mkdir(parents=True)
    ablation.set_data(str(folder / 'data'))
    assert os.environ['MCBEIT_CLASSES'] == '2'
    assert os.environ['MCBEIT_DATA'] == str(folder / 'data')


def test_output_and_status_of_a_step(folder):
    log = folder / 'train.out'
    code = 'import os; print(os.environ["WORD"]); raise SystemExit(3)'
    for _ in range(2):
        assert ablation.execute([sys.executable, '-c', code], log, dict(WORD='hello')) == 3
    assert log.read_text() == 'hello\nhello\n'


def test_an_interrupt_ends_the_processes_of_a_step(folder, monkeypatch):
    started = []
    popen = subprocess.Popen

    class Interrupted(popen):
        def wait(self, timeout=None):
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, 'Popen', Interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablation.execute(['sleep', '60'], folder / 'train.out', {})
    assert started[0].returncode == -signal.SIGTERM


@pytest.fixture
def call(folder, monkeypatch):
    """Ablate with steps that finish their run, except those of omega-0."""
    for name in ('MCBEIT_ABLATION', 'MCBEIT_DATA', 'MCBEIT_CLASSES'):
        monkeypatch.setenv(name, '')
    for name in ('train/a', 'train/b', 'val'):
        (folder / 'data' / name).mkdir(parents=True)
    patterns = [str(folder / '*.py')]

    def execute(command, log, env):
        executed.append(log.parent.parent.name)
        run = next(run for run in planned(folder, seeds=[0]) if run.folder == log.parent)
        if run.name == 'omega-0':
            log.write_text('the reason\n')
            return 1
        finish(run)
        return 0

    def ablate(**kwargs):
        executed.clear()
        settings = dict(data=str(folder / 'data'), out=folder / 'out', seeds=[0])
        return ablation.ablate(patterns, **(settings | kwargs)), list(executed)

    executed = []
    monkeypatch.setattr(ablation, 'execute', execute)
    return ablate


def test_a_failed_run_is_reported_and_the_others_continue(call, folder, capsys):
    assert call(check=True) == (0, [])
    assert '[2/3] omega-0, seed 0: train, evaluate' in capsys.readouterr().out
    assert call() == (1, ['baseline', 'baseline', 'omega-0', 'omega-1', 'omega-1'])
    error = capsys.readouterr().err
    assert 'train failed with exit status 1' in error and 'the reason' in error
    table = (folder / 'out/table.md').read_text()
    assert 'Missing or incomplete: 1 runs: omega-0 (seed 0).' in table
    assert (folder / 'out/table.png').stat().st_size > 1000
    assert call() == (1, ['omega-0'])
    assert '[1/3] baseline, seed 0: finished' in capsys.readouterr().out
    changed = dict(cfg_options=['optim_wrapper.optimizer.lr=0.1'], on='photos')
    with pytest.raises(ValueError, match='different settings'):
        call(**changed)
    assert call(table_only=True, **changed) == (1, [])
    assert os.environ['MCBEIT_ABLATION'] == 'photos'


def test_the_command_line(call, folder, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.syspath_prepend(ROOT / 'tools')
    monkeypatch.setattr(sys, 'argv', ['ablate.py', str(folder / '*.py'), '--data',
                        str(folder / 'data'), '--out', str(folder / 'out'), '--seeds', '0', '4',
                        '--precision', 'bf16', '--check'])  # fmt: skip
    from ablate import main

    try:
        with pytest.raises(SystemExit) as stop:
            main()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert stop.value.code == 0
        assert '[6/6] omega-1, seed 4: train, evaluate' in capsys.readouterr().out
        sys.argv.append('--cfg-options=model.head.omga=1')
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2 and 'omga' in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_an_interrupted_ablation_says_how_to_continue(call, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, 'execute', interrupt)
    assert call()[0] == 130
    assert 'rerun the same command to continue' in capsys.readouterr().err


def wait_for(found, process, seconds=200):
    end = time.time() + seconds
    while not found() and process.poll() is None:
        assert time.time() < end
        time.sleep(0.05)


def write_pretraining(folder):
    """Write two tiny pretraining configs, a tokenizer and photos of two classes."""
    tokenizer = GumbelVQGANTokenizer(DDCONFIG, 24, 8)
    torch.save(dict(state_dict=tokenizer.state_dict()), folder / 'tokenizer.pth')
    text = CONFIG.format(root=ROOT, folder=folder, ddconfig=DDCONFIG)
    (folder / 'baseline.py').write_text(text)
    delta = "_base_ = './baseline.py'\nmodel = dict(head=dict(omega=1.0))\n"
    (folder / 'omega-1.py').write_text(delta)
    rng = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 4)):
        for label, name in enumerate(('dark', 'light')):
            (folder / 'photos' / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(120 * label, 120 * label + 60, (72, 80, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / 'photos' / split / name / f'{i}.png')


@pytest.mark.slow
def test_interrupted_and_continued(tmp_path):
    """Two configs, two seeds, interrupted during the second run, then run to the end."""
    write_pretraining(tmp_path)
    out = tmp_path / 'out'
    command = [sys.executable, 'tools/ablate.py', str(tmp_path / '*.py'), '--data',
               str(tmp_path / 'photos'), '--out', str(out), '--seeds', '0', '1',
               '--cfg-options', 'train_cfg.max_epochs=8', 'param_scheduler.0.end=8']  # fmt: skip
    settings = dict(cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, **settings, **pipes)
    second = out / 'omega-1/seed0'
    wait_for(lambda: (second / 'last_checkpoint').exists(), process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert 'rerun the same command to continue' in error
    first = out / 'baseline/seed0/features.json'
    assert first.exists() and not (second / 'features.json').exists()
    before = first.stat().st_mtime_ns
    done = subprocess.run(command, **settings, **pipes, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '[1/4] baseline, seed 0: finished' in done.stdout
    assert '[2/4] omega-1, seed 0: train ...' in done.stdout
    log = (second / 'train.out').read_text()
    assert 'resumed epoch' in log
    assert first.stat().st_mtime_ns == before
    results = json.loads((out / 'results.json').read_text())['configs']
    assert results['omega-1']['changes'] == ['head.omega 0.2 → 1.0']
    for row in results.values():
        assert set(row['seeds']) == {'0', '1'} and not row['missing']
        assert all(0 <= v['knn'] <= 100 and v['kl'] >= 0 for v in row['seeds'].values())
    assert (out / 'table.md').read_text().count('±') >= 8 and (out / 'table.png').exists()
