"""The launch scripts: exit statuses, requeueing, signals, a rank that dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

UNSET = ('SLURM_', 'NNODES', 'NODE_RANK', 'MASTER_', 'PORT', 'GPUS', 'MAX_RESTARTS')


def environment(tmp_path, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(UNSET)}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ['PATH']])
    return dict(clean, PATH=path, HERE=str(tmp_path), **env)


def command(tmp_path, name, body):
    (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{body}\n')
    (tmp_path / name).chmod(0o755)


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


SRUN = """
echo "${@: -3}" >> "$HERE/calls"
exit $(sed -n "$(wc -l < "$HERE/calls")p" "$HERE/statuses")
"""
SCONTROL = """
echo "$@" >> "$HERE/scontrol_calls"
[ "$1" = show ] && echo "JobId=7 JobState=$STATE Reason=None" || true
"""


def slurm_train(tmp_path, statuses, *args, **env):
    """Run the script with an srun that ends with these statuses; gives status and srun's calls."""
    command(tmp_path, 'srun', SRUN)
    (tmp_path / 'statuses').write_text(''.join(f'{status}\n' for status in statuses))
    out = subprocess.run(
        ['bash', 'tools/slurm_train.sh', 'part', 'job', 'c.py', *args],
        cwd=ROOT, env=environment(tmp_path, **env), capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    return out.returncode, (tmp_path / 'calls').read_text().splitlines(), out.stderr


def test_an_interrupted_srun_is_repeated_with_resume(tmp_path):
    status, calls, _ = slurm_train(tmp_path, [75, 75, 0], '--resume', 'old.pth')
    assert status == 0
    assert calls == ['slurm --resume old.pth', *['--resume old.pth --resume'] * 2]


@pytest.mark.parametrize('failure', [1, 2, 137])
def test_a_failed_srun_is_not_repeated(tmp_path, failure):
    status, calls, _ = slurm_train(tmp_path, [failure])
    assert status == failure and calls == ['c.py --launcher slurm']


def test_restarts_are_limited(tmp_path):
    status, calls, text = slurm_train(tmp_path, [75] * 9, MAX_RESTARTS='2')
    assert status == 75 and len(calls) == 3 and 'MAX_RESTARTS' in text


def test_a_batch_job_goes_back_into_the_queue(tmp_path):
    command(tmp_path, 'scontrol', SCONTROL)
    status, calls, _ = slurm_train(tmp_path, [75], SLURM_JOB_ID='7', STATE='RUNNING')
    assert status == 75 and calls == ['c.py --launcher slurm']
    assert 'requeue 7' in (tmp_path / 'scontrol_calls').read_text().splitlines()


def test_a_cancelled_batch_job_does_not_come_back(tmp_path):
    command(tmp_path, 'scontrol', SCONTROL)
    slurm_train(tmp_path, [75], SLURM_JOB_ID='7', STATE='CANCELLED')
    assert 'requeue' not in (tmp_path / 'scontrol_calls').read_text()


def test_a_requeued_batch_job_resumes(tmp_path):
    command(tmp_path, 'scontrol', SCONTROL)
    env = dict(SLURM_JOB_ID='7', STATE='RUNNING', MAX_RESTARTS='3')
    status, calls, _ = slurm_train(tmp_path, [0], SLURM_RESTART_COUNT='2', **env)
    assert status == 0 and calls == ['--launcher slurm --resume']
    slurm_train(tmp_path, [0, 75], SLURM_RESTART_COUNT='3', **env)
    assert not (tmp_path / 'scontrol_calls').exists()  # the limit holds across requeues


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGINT'])
def test_a_signal_reaches_srun_and_ends_the_script(tmp_path, name):
    body = """
    trap 'echo TERM > "$HERE/got"; exit 75' TERM
    trap 'echo USR1 > "$HERE/got"; exit 75' USR1
    echo >> "$HERE/calls"
    for i in {1..100}; do sleep 0.1; done
    """
    command(tmp_path, 'srun', body)
    script = subprocess.Popen(
        ['bash', 'tools/slurm_train.sh', 'part', 'job', 'c.py'],
        cwd=ROOT, env=environment(tmp_path),
        # Background jobs, as of some CI, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(tmp_path / 'calls')
    script.send_signal(signal.Signals[name])
    assert script.wait(timeout=20) == 75
    expected = 'USR1' if name == 'SIGUSR1' else 'TERM'
    assert (tmp_path / 'got').read_text().strip() == expected
    assert len((tmp_path / 'calls').read_text().splitlines()) == 1


def wait_for(*files, seconds=60):
    end = time.monotonic() + seconds
    while not all(file.exists() and file.stat().st_size for file in files):
        assert time.monotonic() < end, f'no {files}'
        time.sleep(0.05)


# Two processes that add numbers up; a signal ends both, as InterruptHook does.
WORKER = """
import os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

asked = 0
def ask(*_):
    global asked
    asked = 1
for name in ('SIGTERM', 'SIGINT', 'SIGUSR1'):
    signal.signal(signal.Signals[name], ask)

@record
def main():
    dist.init_process_group('gloo')
    while True:
        flag = torch.tensor(asked)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        pid = Path(os.environ['HERE'], f'pid{dist.get_rank()}')
        if not pid.exists():
            pid.with_suffix('.new').write_text(str(os.getpid()))
            pid.with_suffix('.new').rename(pid)
        if flag:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(os.environ['MCBEIT_INTERRUPTED']).write_text('75')
            sys.exit(75)
        time.sleep(0.05)

main()
"""


@pytest.fixture
def two_processes(tmp_path):
    """Start the two processes as dist_train.sh does; the script in a group of its own."""
    (tmp_path / 'worker.py').write_text(WORKER)
    (tmp_path / 'c.py').touch()
    text = 'set -euo pipefail; source tools/launch_distributed.sh; launch_distributed 2 "$@"'
    with (tmp_path / 'log').open('w') as log:
        script = subprocess.Popen(
            ['bash', '-c', text, str(ROOT / 'tools/dist_train.sh')]
            + [str(tmp_path / 'worker.py'), str(tmp_path / 'c.py')],
            cwd=ROOT, env=environment(tmp_path), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(tmp_path / 'pid0', tmp_path / 'pid1')
        time.sleep(0.2)
        yield script, [int((tmp_path / f'pid{rank}').read_text()) for rank in (0, 1)]
    finally:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    'name', ['SIGTERM', *(pytest.param(n, marks=pytest.mark.slow) for n in ('SIGINT', 'SIGUSR1'))]
)
def test_an_interrupted_torchrun_ends_with_75(two_processes, name):
    script, pids = two_processes
    script.send_signal(signal.Signals[name])
    assert script.wait(timeout=60) == 75
    assert not any(Path(f'/proc/{pid}').exists() for pid in pids)


def test_a_killed_rank_ends_the_job_with_its_reason(two_processes, tmp_path):
    script, pids = two_processes
    start = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    assert script.wait(timeout=60) not in (0, 75)
    print(f'ended {time.monotonic() - start:.1f} s after the kill')
    log = (tmp_path / 'log').read_text()
    assert 'Signal 9 (SIGKILL)' in log and f'pid: {pids[1]}' in log
    assert not Path(f'/proc/{pids[0]}').exists()
