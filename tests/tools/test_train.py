"""Real runs of tools/train.py: loss, log, checkpoints, resume, two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tiny_train import CONFIG

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
from mcbeit_mm.weights.reading import read_checkpoint


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, 32 tiny images of two kinds and a random tokenizer's weights."""
    from tiny_models import DDCONFIG

    folder = tmp_path_factory.mktemp('train')
    (folder / 'photos/nested').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(32):
        image = np.full((80, 96, 3), 40 if i % 2 else 200, dtype=np.uint8)
        image += rng.integers(0, 30, image.shape, dtype=np.uint8)
        Image.fromarray(image).save(folder / f'photos/nested/{i:02d}.png')
    for name, seed in (('tokenizer', 0), ('other', 1)):
        torch.manual_seed(seed)
        tokenizer = GumbelVQGANTokenizer(DDCONFIG, 24, 8)
        torch.save(dict(state_dict=tokenizer.state_dict()), folder / f'{name}.pth')
    text = CONFIG.format(root=ROOT, folder=folder, ddconfig=DDCONFIG)
    (folder / 'tiny.py').write_text(text)
    return folder


def train(folder: Path, work: str, *args: str, launcher: list[str] | None = None) -> Path:
    launcher = launcher or [sys.executable, 'tools/train.py', str(folder / 'tiny.py')]
    command = [*launcher, '--work-dir', str(folder / work), *args]
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    path = Path(sys.executable).parent
    env['PATH'] = f'{path}{os.pathsep}{env["PATH"]}'
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    if out.returncode:
        raise RuntimeError(out.stderr[-3000:])
    return folder / work


def scalars(work: Path) -> list[dict]:
    newest = max(work.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(folder):
    return train(folder, 'full')


def test_loss_falls_and_everything_is_logged(finished):
    log = scalars(finished)
    assert len(log) == 16  # 4 epochs of 32 / 8
    kl = [entry['kl'] for entry in log]
    assert np.mean(kl[-4:]) < 0.5 * np.mean(kl[:2])
    wanted = {'loss', 'kl', 'target_entropy', 'mlm_acc', 'grad_norm', 'lr', 'images_per_s', 'time'}
    assert wanted <= set(log[-1])
    for entry in log:
        assert entry['kl'] == pytest.approx(
            entry['loss'] - entry['target_entropy'], abs=1e-3
        )  # the log averages over a window
    shares = [entry['tokenizer_share'] for entry in log if 'tokenizer_share' in entry]
    assert shares and all(0 < share < 1 for share in shares)


def test_text_log_has_the_eta(finished):
    text = max(finished.glob('*/*.log')).read_text()
    lines = [line for line in text.splitlines() if 'Epoch(train)' in line]
    for word in ('lr:', 'eta:', 'grad_norm:', 'loss:', 'kl:', 'mlm_acc:', 'images_per_s:'):
        assert word in lines[-1]


def test_checkpoint_holds_no_tokenizer_but_names_it(finished, folder):
    checkpoint = torch.load(finished / 'epoch_4.pth', weights_only=False)  # our own file
    assert not [k for k in checkpoint['state_dict'] if not k.startswith(('backbone.', 'head.'))]
    identity = checkpoint['meta']['tokenizer']
    assert identity['checkpoint'] == str(folder / 'tokenizer.pth')
    assert len(identity['sha256']) == 64
    safe = read_checkpoint(finished / 'epoch_4.pth')
    assert safe['state_dict'].keys() == checkpoint['state_dict'].keys()


def test_resume_continues_the_schedule_though_the_tokenizer_has_moved(folder, finished):
    moved = folder / 'moved.pth'
    moved.write_bytes((folder / 'tokenizer.pth').read_bytes())
    option = f'model.target_generator.checkpoint={moved}'
    resume = str(finished / 'epoch_2.pth')
    log = scalars(train(folder, 'resumed', '--resume', resume, '--cfg-options', option))
    full = {entry['step']: entry['lr'] for entry in scalars(finished)}
    assert [entry['step'] for entry in log] == list(range(9, 17))
    assert [entry['lr'] for entry in log] == pytest.approx([full[s] for s in range(9, 17)])


def test_resume_with_another_tokenizer_is_refused(folder, finished):
    other = f'model.target_generator.checkpoint={folder / "other.pth"}'
    with pytest.raises(RuntimeError, match='error: the checkpoint was trained with tokenizer'):
        train(folder, 'refused', '--resume', str(finished / 'epoch_2.pth'), '--cfg-options', other)


def test_two_processes_over_gloo_in_bf16_with_accumulation(folder, finished):
    launcher = ['bash', 'tools/dist_train.sh', str(folder / 'tiny.py'), '2']
    options = [
        'train_cfg.max_epochs=3',
        'param_scheduler.0.end=3',
        'optim_wrapper.accumulative_counts=2',
    ]
    arguments = ['--precision', 'bf16', '--cfg-options', *options]
    work = train(folder, 'dist', *arguments, launcher=launcher)
    log = scalars(work)
    assert len(log) == 6  # half as many steps: each process sees half of the images
    assert log[-1]['kl'] < log[0]['kl']
    weights = read_checkpoint(work / 'epoch_3.pth')['state_dict']
    assert weights.keys() == read_checkpoint(finished / 'epoch_4.pth')['state_dict'].keys()


@pytest.mark.parametrize(
    'args, text',
    [
        (['tools/dist_train.sh', 'x.py'], 'usage: bash tools/dist_train.sh'),
        (['tools/dist_train.sh', 'x.py', 'many'], "positive integer, got 'many'"),
        (['tools/dist_train.sh', 'x.py', '2'], 'error: no config file x.py'),
        (['tools/dist_test.sh', 'x.py', 'y.pth'], 'usage: bash tools/dist_test.sh'),
        (['tools/slurm_train.sh', 'partition'], 'usage: '),
    ],
)
def test_launch_scripts_explain_themselves(args, text):
    out = subprocess.run(['bash', *args], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert out.returncode == 2 and text in out.stderr


@pytest.mark.parametrize(
    'args, env, expected',
    [
        (
            ['tools/dist_train.sh', 'c.py', '8', '--amp'],
            {},
            '-m torch.distributed.run --nnodes 1 --rdzv-backend c10d --rdzv-endpoint localhost:0 '
            '--nproc-per-node 8 tools/train.py c.py --amp --launcher pytorch',
        ),
        (
            ['tools/dist_train.sh', 'c.py', '8'],
            dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='host', PORT='29600'),
            '-m torch.distributed.run --nnodes 2 --node-rank 1 --master-addr host --master-port '
            '29600 --nproc-per-node 8 tools/train.py c.py --launcher pytorch',
        ),
        (
            ['tools/dist_test.sh', 'c.py', 'x.pth', '2'],
            dict(PORT='29601'),
            '-m torch.distributed.run --nnodes 1 --master-addr 127.0.0.1 --master-port 29601 '
            '--nproc-per-node 2 tools/test.py c.py x.pth --launcher pytorch',
        ),
        (
            ['tools/slurm_train.sh', 'part', 'job', 'c.py', '--resume'],
            dict(GPUS='4', SRUN_ARGS='--exclusive -t 10'),
            '-p part --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4 '
            '--cpus-per-task=10 --kill-on-bad-exit=1 --exclusive -t 10 '
            f'python -u {ROOT}/tools/train.py c.py --launcher slurm --resume',
        ),
    ],
)
def test_launch_scripts_pass_everything_on(tmp_path, args, env, expected):
    for name in ('python', 'srun'):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    unset = ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT', 'GPUS')
    clean = {k: v for k, v in os.environ.items() if k not in unset}
    (tmp_path / 'c.py').touch()
    args = [str(tmp_path / 'c.py') if word == 'c.py' else word for word in args]
    expected = expected.replace(' c.py ', f' {tmp_path}/c.py ')
    env = dict(clean, **env, PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    command = ['bash', *args]
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=20)
    assert out.stdout.strip() == expected
